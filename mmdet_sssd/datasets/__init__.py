from .branches import PartlyLabelledDataset, with_unlabelled
from .coco_file import read_coco, read_coco_summary
from .environment_settings import (
    VARIABLES,
    check_variables,
    positive_integers,
    read_teacher,
)
from .label_pixels import loads_labels_after_resizing, rescale_labels
from .leaf_datasets import evaluator_configs, leaf_configs, leaf_datasets
from .use_data import annotation_path, metainfo_of, use_data

__all__ = [
    'VARIABLES',
    'PartlyLabelledDataset',
    'annotation_path',
    'check_variables',
    'evaluator_configs',
    'leaf_configs',
    'leaf_datasets',
    'loads_labels_after_resizing',
    'metainfo_of',
    'positive_integers',
    'read_coco',
    'read_coco_summary',
    'read_teacher',
    'rescale_labels',
    'use_data',
    'with_unlabelled',
]
