"""Trains, evaluates and shows a self-distilled detector in minutes."""

import os
import shutil
from pathlib import Path

from ..datasets import VARIABLES
from ..errors import ConfigError
from .shapes import draw_data_set
from .training import run_test, run_training

METRICS = ('bbox_mAP', 'bbox_mAP_50', 'bbox_mAP_75', 'bbox_mAP_s', 'bbox_mAP_m')


def run_quickstart(config: str, out: Path, epochs: int, train: int, val: int) -> None:
    """Draw shapes, train on them from scratch, evaluate, draw predictions, and print the APs.

    Args:
        config: File of a config for one's own data, which finds the shapes through the environment.
        out: Folder for all files.
        epochs: Epochs of training.
        train: Number of images to train on.
        val: Number of images to evaluate on.

    Raises:
        ConfigError: if ``out`` has files that are not of an earlier quickstart, and would be replaced.
    """
    shapes, run, test = out / 'shapes', out / 'run', out / 'test'
    name = Path(config).name
    for folder, own in ((run, run / name), (test, test / f'test_{name}')):
        if folder.exists() and not own.exists():
            raise ConfigError(
                f'--out: {folder} is not of a quickstart; remove it, or give another folder'
            )
    draw_data_set(shapes, train, val)
    for variable in VARIABLES:  # of the user's own data
        os.environ.pop(variable, None)
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
    changes = {'train_cfg.val_interval': max(1, epochs // 4)}
    run_training(config, changes, work_dir=str(run))
    checkpoint = (run / 'last_checkpoint').read_text(encoding='utf-8')
    metrics = run_test(config, checkpoint, {}, work_dir=str(test), show_dir='predictions')
    pictures = next(test.glob('*/predictions'))
    _print_metrics(metrics)
    print(
        f'Files:\n  data set     {shapes}\n  predictions  {pictures}\n  checkpoint   {checkpoint}\n'
        f'  config       {run / name}\nNext: your own COCO-format data, see README.md.'
    )


def _print_metrics(metrics: dict[str, float]) -> None:
    """Print the APs; mmdet computes none for a detector without predictions."""
    if f'coco/{METRICS[0]}' not in metrics:
        print('The detector finds nothing yet; train it longer (--epochs).')
        return
    print('AP on the validation images (bbox_mAP averages over IoU 0.50 to 0.95):')
    for name in METRICS:
        print(f'  {name:<12}{metrics[f"coco/{name}"]:.3f}')
