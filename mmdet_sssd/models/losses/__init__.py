from .adaptive_distill_loss import AdaptiveDistillLoss, soft_positive_count
from .feature_losses import CosineLoss, FeatureLoss, JSDistanceLoss, NormedMSELoss
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
