"""Trains, evaluates and shows a self-distilled detector in minutes."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ..errors import ConfigError
from .comparison.logs import read_progress
from .shapes import draw_data_set

CONFIG = 'sssd_retinanet_r18-small_own-data'
METRICS = ('bbox_mAP', 'bbox_mAP_50', 'bbox_mAP_75', 'bbox_mAP_s', 'bbox_mAP_m')
POLL = 1.0  # seconds between looks at the run


def run_quickstart(out: Path, epochs: int, train: int, val: int) -> None:
    """Draw shapes, train on them from scratch, evaluate, draw predictions, and print the APs.

    Raises:
        ConfigError: if training or evaluation fails.
    """
    shapes, run, test = out / 'shapes', out / 'run', out / 'test'
    draw_data_set(shapes, train, val)
    os.environ.update(
        SSSD_DATA_ROOT=str(shapes),
        SSSD_TRAIN_IMG='train',
        SSSD_VAL_IMG='val',
        SSSD_IMAGE_SCALE='128x128',
        SSSD_BATCH_SIZE='8',
        SSSD_MAX_EPOCHS=str(epochs),
    )
    for folder in (run, test):
        shutil.rmtree(folder, ignore_errors=True)
    _train(run, out / 'train.log', epochs)
    checkpoint = (run / 'last_checkpoint').read_text(encoding='utf-8')
    with Progress(TextColumn('{task.description}')) as bars:
        bars.add_task('evaluating')
        args = ['test', CONFIG, checkpoint, '--work-dir', test, '--show-dir', 'predictions']
        process = _start(args, out / 'test.log')
        _end(process, out / 'test.log')
    config = run / f'{CONFIG}.py'
    pictures = next(test.glob('*/predictions'))
    _print_metrics(json.loads(next(test.glob('*/*.json')).read_text(encoding='utf-8')))
    print(
        f'Files:\n  data set     {shapes}\n  predictions  {pictures}\n  checkpoint   {checkpoint}\n'
        f'  config       {config}\nNext: your own COCO-format data, see README.md.'
    )


def _print_metrics(metrics: dict[str, float]) -> None:
    """Print the APs; mmdet computes none for a detector without predictions."""
    if f'coco/{METRICS[0]}' not in metrics:
        print('The detector finds nothing yet; train it longer (--epochs).')
        return
    print('AP on the validation images (bbox_mAP averages over IoU 0.50 to 0.95):')
    for name in METRICS:
        print(f'  {name:<12}{metrics[f"coco/{name}"]:.3f}')


def _train(run: Path, log: Path, epochs: int) -> None:
    """Train, and show the progress."""
    columns = (
        TextColumn('training'),
        BarColumn(),
        TextColumn('epoch {task.fields[epoch]}, loss {task.fields[loss]}'),
        TimeRemainingColumn(),
    )
    interval = f'train_cfg.val_interval={max(1, epochs // 4)}'
    process = _start(['train', CONFIG, '--work-dir', run, interval], log)
    with Progress(*columns) as bars:
        task = bars.add_task('training', total=epochs, epoch=f'0/{epochs}', loss='-')
        while process.poll() is None:
            time.sleep(POLL)
            if row := read_progress(run):
                epoch, loss = row['epoch'], f'{row["loss"]:.2f}'
                bars.update(task, completed=epoch, epoch=f'{epoch}/{epochs}', loss=loss)
    _end(process, log)


def _start(args: list, log: Path) -> subprocess.Popen:
    """Start a command of this package."""
    with open(log, 'w', encoding='utf-8') as output:
        return subprocess.Popen(
            [sys.executable, '-m', 'mmdet_sssd', *map(str, args)],
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def _end(process: subprocess.Popen, log: Path) -> None:
    """Wait for a command to end.

    Raises:
        ConfigError: if it failed; the message is its last line.
    """
    if process.wait():
        lines = log.read_text(encoding='utf-8').strip().splitlines()
        last = lines[-1].removeprefix('error: ') if lines else 'it printed nothing'
        raise ConfigError(f'{last} (full log: {log})')
