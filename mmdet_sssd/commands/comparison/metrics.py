"""Finds the metrics of a run, and AP among them, by IoU and object size."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

AP_NAMES = {'AP': '', 'AP50': '_50', 'AP75': '_75', 'APs': '_s', 'APm': '_m', 'APl': '_l'}
"""Columns of box AP, with the endings of the metrics' names."""

MASK_AP_NAMES = {'mask AP': '', 'mask AP50': '_50', 'mask AP75': '_75'}
"""Columns of mask AP."""

MAIN = (r'bbox_mAP', r'bbox_AP', r'mAP', r'AP')  # CocoMetric, LVISMetric, VOCMetric …


def main_metric(metrics: Mapping[str, float]) -> str | None:
    """Find the name of the detector's AP, such as ``'coco/bbox_mAP'``; None without one."""
    ours = [name for name in metrics if not name.startswith('teacher/')]
    found = (name for main in MAIN for name in ours if re.fullmatch(rf'(.*/)?{main}', name))
    return next(found, None)


def standard_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Collect the metrics of :data:`AP_NAMES` and :data:`MASK_AP_NAMES`, in percent.

    Sizes without objects (-1 in COCO) are left out.
    """
    main = main_metric(metrics)
    if main is None:
        return {}
    names = {name: main + end for name, end in AP_NAMES.items()}
    if 'bbox_' in main:
        masks = main.replace('bbox_', 'segm_')
        names |= {name: masks + end for name, end in MASK_AP_NAMES.items()}
    return {k: 100 * metrics[x] for k, x in names.items() if metrics.get(x, -1) >= 0}


def read_validations(work_dir: Path) -> dict[int, dict[str, float]]:
    """Read from mmengine's logs the metrics of each validation of a run, by epoch or iteration."""
    found = {}
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        text = path.read_text(encoding='utf-8')
        for line in text[: text.rfind('\n') + 1].splitlines():  # skip an incomplete last line
            row = json.loads(line)
            if main_metric(row):
                found[row['step']] = row
    return found
