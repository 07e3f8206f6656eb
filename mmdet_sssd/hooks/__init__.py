from .adaptive_distill_coef_hook import AdaptiveDistillCoefHook
from .check_dataset_hook import CheckDatasetHook
from .phase_hooks import DetachStudentHook, FreezeBackboneHook
from .random_state_hook import RandomStateHook
from .safe_checkpoint_hook import SafeCheckpointHook

__all__ = [
    'AdaptiveDistillCoefHook',
    'CheckDatasetHook',
    'DetachStudentHook',
    'FreezeBackboneHook',
    'RandomStateHook',
    'SafeCheckpointHook',
]
