"""Reads the scalars that mmengine's visualizer logs for a run."""

import json
from collections.abc import Iterator
from pathlib import Path

from .metrics import main_metric


def read_validations(work_dir: Path) -> dict[int, dict[str, float]]:
    """Read the metrics of each validation of a run, resumed or not, by epoch or iteration."""
    return {row['step']: row for row in _rows(work_dir) if main_metric(row)}


def read_progress(work_dir: Path) -> dict[str, float]:
    """Read the last logged row of training; empty before the first."""
    rows = [row for row in _rows(work_dir, latest=True) if 'iter' in row]
    return rows[-1] if rows else {}


def _rows(work_dir: Path, latest: bool = False) -> Iterator[dict]:
    paths = sorted(work_dir.glob('*/vis_data/scalars.json'))
    for path in paths[-1:] if latest else paths:
        text = path.read_text(encoding='utf-8')
        for line in text[: text.rfind('\n') + 1].splitlines():  # skip an incomplete last line
            yield json.loads(line)
