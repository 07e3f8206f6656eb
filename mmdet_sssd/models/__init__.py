from .detectors import Distiller, SemiDistiller, SSSDDistiller
from .layers import ChannelAdapter, FeatureAdapter
from .losses import AdaptiveDistillLoss, JSDistanceLoss, NormedMSELoss, SSIMLoss
from .necks import LabelEncoderTeacher
from .teachers import ImplicitTeacher, PretrainedTeacher
from .terms import FeatureTerm, LogitTerm

__all__ = [
    'AdaptiveDistillLoss',
    'ChannelAdapter',
    'Distiller',
    'FeatureAdapter',
    'FeatureTerm',
    'ImplicitTeacher',
    'JSDistanceLoss',
    'LabelEncoderTeacher',
    'LogitTerm',
    'NormedMSELoss',
    'PretrainedTeacher',
    'SSIMLoss',
    'SSSDDistiller',
    'SemiDistiller',
]
