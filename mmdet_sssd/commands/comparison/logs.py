"""Reads the scalars that mmengine's visualizer logs for a run."""

import json
from pathlib import Path

from .metrics import main_metric


def read_validations(work_dir: Path) -> dict[int, dict[str, float]]:
    """Read the metrics of each validation of a run, resumed or not, by epoch or iteration."""
    found = {}
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        text = path.read_text(encoding='utf-8')
        for line in text[: text.rfind('\n') + 1].splitlines():  # skip an incomplete last line
            row = json.loads(line)
            if main_metric(row):
                found[row['step']] = row
    return found
