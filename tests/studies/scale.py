"""Measures how the cost of a training step grows with image size, batch, objects, classes and levels.

    python -m tests.studies.scale work_dirs/scale [--steps 9] [--only objects classes]

A RetinaNet with ResNet-18, stock and with SSSD, takes steps in turn; one size varies at a time. The
results are ``scale.json`` and ``scale.png`` in the folder; repeat the command to continue a stopped
study. Use an idle machine.
"""

import json
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl

from mmdet_sssd.commands.benchmark.benchmark import BenchmarkOptions, run_benchmark
from mmdet_sssd.errors import user_errors_last

mpl.use('agg')
import matplotlib.pyplot as plt

CONFIG = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
AXES: dict[str, list[Any]] = {
    'size': [(192, 320), (256, 448), (384, 640), (544, 896), (800, 1344)],
    'batch': [1, 2, 4, 8],
    'objects': [1, 3, 8, 30, 100, 300],
    'classes': [1, 20, 80, 256, 257, 365, 1203],
    'levels': [3, 4, 5, 6],
}
MOST = 1.25  # what 300 objects may cost, in steps of 3


def options_of(base: BenchmarkOptions, axis: str, value: Any) -> BenchmarkOptions:
    """Change one size."""
    if axis == 'size':
        return replace(base, shape=value)
    if axis in ('batch', 'objects'):
        return replace(base, **{axis: value})
    changes = {'model.bbox_head.num_classes': value}
    if axis == 'levels':
        changes = {
            'model.neck.num_outs': value,
            'model.bbox_head.anchor_generator.strides': [8 * 2**p for p in range(value)],
        }
    return replace(base, cfg_options=changes)


def amount(axis: str, value: Any) -> float:
    """Convert a value to an amount: megapixels for images."""
    return value[0] * value[1] / 1e6 if axis == 'size' else value


def measure(folder: Path, base: BenchmarkOptions, axes: list[str]) -> dict[str, list[dict]]:
    """Measure the missing sizes."""
    file = folder / 'scale.json'
    found = json.loads(file.read_text()) if file.is_file() else {}
    for axis in axes:
        rows = found.setdefault(axis, [])
        for value in AXES[axis][len(rows) :]:
            print(f'{axis}: {value}', flush=True)
            result = run_benchmark(options_of(base, axis, value))
            rows.append({'value': value, 'amount': amount(axis, value), **result})
            file.write_text(json.dumps(found, indent=1) + '\n')
    return found


def medians(rows: list[dict], arm: str) -> list[float]:
    return [row['arms'][arm]['step_time']['median'] for row in rows]


def verdicts(found: dict[str, list[dict]]) -> list[str]:
    """Describe the growth of time and memory from the smallest to the largest value."""
    lines = []
    for axis, rows in found.items():
        more = rows[-1]['amount'] / rows[0]['amount']
        for arm in rows[0]['arms']:
            times = medians(rows, arm)
            peaks = [row['arms'][arm]['peak_memory'] for row in rows]
            lines.append(
                f'{axis} × {more:.3g}: {arm} takes × {times[-1] / times[0]:.2f} the time and '
                f'× {peaks[-1] / peaks[0]:.2f} the memory'
            )
    if 'objects' in found:
        rows = {row['value']: row for row in found['objects']}
        for arm in rows[3]['arms'] if {3, 300} <= set(rows) else ():
            few, many = (medians([rows[n]], arm)[0] for n in (3, 300))
            lines.append(
                f'300 objects cost {arm} × {many / few:.2f} the step of 3 (goal: ≤ {MOST})'
            )
    return lines


def draw(found: dict[str, list[dict]], path: Path) -> None:
    """Draw time and memory against each size."""
    figure, axes = plt.subplots(
        2, len(found), figsize=(3.2 * len(found), 6), squeeze=False, layout='constrained'
    )
    for column, (axis, rows) in enumerate(found.items()):
        amounts = [row['amount'] for row in rows]
        for arm in rows[0]['arms']:
            peaks = [row['arms'][arm]['peak_memory'] / 2**20 for row in rows]
            axes[0][column].plot(amounts, medians(rows, arm), marker='o', label=arm)
            axes[1][column].plot(amounts, peaks, marker='o', label=arm)
        for row in (0, 1):
            axes[row][column].set_ylim(bottom=0)
            axes[row][column].set_xlabel('megapixels' if axis == 'size' else axis)
    axes[0][0].set_ylabel('step (s)')
    axes[1][0].set_ylabel('memory (MiB)')
    axes[0][0].legend()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument('folder', type=Path)
    parser.add_argument('--only', nargs='+', choices=AXES, default=[*AXES])
    parser.add_argument('--shape', type=int, nargs=2, default=(384, 640), help='when others vary')
    parser.add_argument('--steps', type=int, default=9)
    parser.add_argument('--device')
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    base = BenchmarkOptions(
        CONFIG,
        arms=['baseline', 'paper'],
        shape=tuple(args.shape),
        steps=args.steps,
        device=args.device,
    )
    found = measure(args.folder, base, args.only)
    draw(found, args.folder / 'scale.png')
    print('\n'.join(verdicts(found)))


if __name__ == '__main__':
    with user_errors_last():
        main()
