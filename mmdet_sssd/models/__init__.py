from .detectors import Distiller, SemiDistiller, SSSDDistiller
from .layers import ChannelAdapter, FeatureAdapter
from .losses import AdaptiveDistillLoss, JSDistanceLoss, NormedMSELoss, SSIMLoss
from .necks import LabelEncoderTeacher
from .terms import FeatureTerm, LogitTerm

__all__ = [
    'AdaptiveDistillLoss',
    'ChannelAdapter',
    'Distiller',
    'FeatureAdapter',
    'FeatureTerm',
    'JSDistanceLoss',
    'LabelEncoderTeacher',
    'LogitTerm',
    'NormedMSELoss',
    'SSIMLoss',
    'SSSDDistiller',
    'SemiDistiller',
]
