from .distill_term import DetectorOutputs, DistillTerm, check_not_negative
from .feature_term import FeatureTerm, build_feature_loss, feature_losses
from .logit_term import LogitTerm

__all__ = [
    'DetectorOutputs',
    'DistillTerm',
    'FeatureTerm',
    'LogitTerm',
    'build_feature_loss',
    'check_not_negative',
    'feature_losses',
]
