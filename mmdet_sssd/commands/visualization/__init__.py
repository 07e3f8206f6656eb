from .feature_picture import ImageFeatures, draw_features, look_at_features
from .labelled_images import find_labelled_images

__all__ = ['ImageFeatures', 'draw_features', 'find_labelled_images', 'look_at_features']
