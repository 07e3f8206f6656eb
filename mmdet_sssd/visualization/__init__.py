from .feature_picture import ImageFeatures, draw_features, look_at_features

__all__ = ['ImageFeatures', 'draw_features', 'look_at_features']
