from .channel_adapter import ChannelAdapter
from .channel_projection import ChannelProjection, as_levels, common_width
from .class_code import EmbeddedClass, OneHotClass
from .feature_adapter import FeatureAdapter, instance_norm
from .knowledge_mapper import KnowledgeMapper
from .label_encoder import LabelEncoder
from .labelled_objects import LabelledObjects
from .relation_adapter import AppearanceEncoder, RelationAdapter

__all__ = [
    'AppearanceEncoder',
    'ChannelAdapter',
    'ChannelProjection',
    'EmbeddedClass',
    'FeatureAdapter',
    'KnowledgeMapper',
    'LabelEncoder',
    'LabelledObjects',
    'OneHotClass',
    'RelationAdapter',
    'as_levels',
    'common_width',
    'instance_norm',
]
