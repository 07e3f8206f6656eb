from .cpu_amp_optim_wrapper import CpuAmpOptimWrapper, amp_where_it_runs
from .layer_decay_constructor import LearningRateDecayOptimizerConstructor, StudentNames

__all__ = [
    'CpuAmpOptimWrapper',
    'LearningRateDecayOptimizerConstructor',
    'StudentNames',
    'amp_where_it_runs',
]
