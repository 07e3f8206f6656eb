from .feature_picture import ImageFeatures, draw_features, look_at_features
from .image_features import draw_images
from .labelled_images import find_labelled_images
from .predictions import draw_predictions

__all__ = [
    'ImageFeatures',
    'draw_features',
    'draw_images',
    'draw_predictions',
    'find_labelled_images',
    'look_at_features',
]
