from .annotation_check import check_annotations
from .own_data import positive_integers, read_coco_summary

__all__ = ['check_annotations', 'positive_integers', 'read_coco_summary']
