from .adaptive_distill_loss import AdaptiveDistillLoss, soft_positive_count
from .feature_loss import CosineLoss, FeatureLoss, NormedMSELoss
from .js_distance_loss import JSDistanceLoss
from .ssim_loss import SSIMLoss, ssim

__all__ = [
    'AdaptiveDistillLoss',
    'CosineLoss',
    'FeatureLoss',
    'JSDistanceLoss',
    'NormedMSELoss',
    'SSIMLoss',
    'soft_positive_count',
    'ssim',
]
