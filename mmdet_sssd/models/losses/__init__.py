from .js_distance_loss import JSDistanceLoss, js_distance
from .normed_mse_loss import NormedMSELoss, normed_mse_loss

__all__ = ['JSDistanceLoss', 'NormedMSELoss', 'js_distance', 'normed_mse_loss']
