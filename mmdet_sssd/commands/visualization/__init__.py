from .feature_picture import draw_features, look_at_features
from .image_features import draw_images

__all__ = ['draw_features', 'draw_images', 'look_at_features']
