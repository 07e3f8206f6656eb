from .annotation_check import check_annotations, evaluator_configs
from .environment_settings import (
    VARIABLES,
    check_variable_names,
    positive_integers,
    read_coco_summary,
    read_teacher,
)
from .image_errors import unreadable_images_named
from .label_pixels import loads_labels_after_resizing, rescale_labels
from .leaf_datasets import leaf_configs, leaf_datasets

__all__ = [
    'VARIABLES',
    'check_annotations',
    'check_variable_names',
    'evaluator_configs',
    'leaf_configs',
    'leaf_datasets',
    'loads_labels_after_resizing',
    'positive_integers',
    'read_coco_summary',
    'read_teacher',
    'rescale_labels',
    'unreadable_images_named',
]
