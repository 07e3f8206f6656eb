from .detectors import SSSDDistiller
from .layers import FeatureAdapter
from .losses import JSDistanceLoss, NormedMSELoss
from .necks import LabelEncoderTeacher

__all__ = [
    'FeatureAdapter',
    'JSDistanceLoss',
    'LabelEncoderTeacher',
    'NormedMSELoss',
    'SSSDDistiller',
]
