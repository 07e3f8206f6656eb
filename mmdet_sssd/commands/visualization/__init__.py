from .feature_picture import draw_features, look_at_features
from .image_features import draw_images
from .predictions import draw_predictions

__all__ = ['draw_features', 'draw_images', 'draw_predictions', 'look_at_features']
