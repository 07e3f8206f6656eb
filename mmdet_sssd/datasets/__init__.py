from .annotation_check import check_annotations, evaluator_configs, leaf_configs
from .own_data import positive_integers, read_coco_summary

__all__ = [
    'check_annotations',
    'evaluator_configs',
    'leaf_configs',
    'positive_integers',
    'read_coco_summary',
]
