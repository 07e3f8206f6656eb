from .feature_loss import FeatureLoss
from .js_distance_loss import JSDistanceLoss, js_distance
from .normed_mse_loss import NormedMSELoss

__all__ = ['FeatureLoss', 'JSDistanceLoss', 'NormedMSELoss', 'js_distance']
