"""Which of an evaluator's metrics are AP, by IoU, object size and class."""

import math
import re
from collections.abc import Mapping

AP_NAMES = {'AP': '', 'AP50': '_50', 'AP75': '_75', 'APs': '_s', 'APm': '_m', 'APl': '_l'}
"""What the columns of the boxes' AP are called, and what the metric's name ends with."""

MASK_AP_NAMES = {'mask AP': '', 'mask AP50': '_50', 'mask AP75': '_75'}
"""The same for masks."""

MAIN = (r'bbox_mAP', r'bbox_AP', r'mAP', r'AP')  # CocoMetric, LVISMetric, VOCMetric …


def main_metric(metrics: Mapping[str, float]) -> str | None:
    """Find the name of the detector's AP, such as ``'coco/bbox_mAP'``; None if there is none."""
    ours = [name for name in metrics if not name.startswith('teacher/')]
    for pattern in MAIN:
        for name in ours:
            if re.fullmatch(rf'(.*/)?{pattern}', name):
                return name
    return None


def standard_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Give the metrics of :data:`AP_NAMES` and :data:`MASK_AP_NAMES` that there are, in percent.

    Sizes of which there are no objects are left out (COCO's -1).
    """
    main = main_metric(metrics)
    if main is None:
        return {}
    masks = main.replace('bbox_', 'segm_')
    values = {name: metrics.get(f'{main}{end}') for name, end in AP_NAMES.items()}
    if masks != main:
        values |= {name: metrics.get(f'{masks}{end}') for name, end in MASK_AP_NAMES.items()}
    return {k: 100 * v for k, v in values.items() if v is not None and v >= 0}


def class_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Give the box AP of each class, in percent, where the evaluator was ``classwise``.

    With masks there is none: CocoMetric keeps the masks' under the same names.
    """
    if any('segm_' in name for name in metrics):
        return {}
    end = '_precision'
    return {
        name.rpartition('/')[2][: -len(end)]: 100 * value
        for name, value in metrics.items()
        if name.endswith(end) and not name.startswith('teacher/') and not math.isnan(value)
    }
