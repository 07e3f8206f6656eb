from .feature_adapter import FeatureAdapter, instance_norm
from .knowledge_mapper import KnowledgeMapper
from .label_encoder import LabelEncoder
from .labelled_objects import LabelledObjects
from .relation_adapter import AppearanceEncoder, RelationAdapter

__all__ = [
    'AppearanceEncoder',
    'FeatureAdapter',
    'KnowledgeMapper',
    'LabelEncoder',
    'LabelledObjects',
    'RelationAdapter',
    'instance_norm',
]
