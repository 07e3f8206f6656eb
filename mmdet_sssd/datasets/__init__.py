from .annotation_check import check_annotations
from .coco_summary import read_coco_summary

__all__ = ['check_annotations', 'read_coco_summary']
