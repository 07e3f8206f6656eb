from .layer_decay_constructor import LearningRateDecayOptimizerConstructor, StudentNames

__all__ = ['LearningRateDecayOptimizerConstructor', 'StudentNames']
