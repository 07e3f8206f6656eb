from .detectors import SSSDDistiller
from .layers import FeatureAdapter
from .losses import AdaptiveDistillLoss, JSDistanceLoss, NormedMSELoss, SSIMLoss
from .necks import LabelEncoderTeacher

__all__ = [
    'AdaptiveDistillLoss',
    'FeatureAdapter',
    'JSDistanceLoss',
    'LabelEncoderTeacher',
    'NormedMSELoss',
    'SSIMLoss',
    'SSSDDistiller',
]
