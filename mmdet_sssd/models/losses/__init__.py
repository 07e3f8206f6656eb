from .adaptive_distill_loss import AdaptiveDistillLoss, adaptive_distill_loss, soft_positive_count
from .feature_loss import FeatureLoss, NormedMSELoss
from .js_distance_loss import JSDistanceLoss, js_distance
from .ssim_loss import SSIMLoss, ssim

__all__ = [
    'AdaptiveDistillLoss',
    'FeatureLoss',
    'JSDistanceLoss',
    'NormedMSELoss',
    'SSIMLoss',
    'adaptive_distill_loss',
    'js_distance',
    'soft_positive_count',
    'ssim',
]
