"""Commands for the first steps: check the installation, and try it."""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

from .config_names import find_config
from .group import Command

PACKAGES = (
    'torch',
    *('mmengine', 'mmcv', 'mmdet'),
    *('onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection'),
    'mmdet_sssd',
)


@click.command(cls=Command, name='setup-check')
def setup_check() -> None:
    """Show what is installed and on which devices it runs.

    If something is missing, says what to do.

    \b
    Example:
      mmdet-sssd setup-check
    """
    _show('Python', f'{platform.python_version()} ({sys.executable})')
    for name in PACKAGES:
        try:
            _show(name, version(name))
        except PackageNotFoundError:
            continue
    import mmdet_sssd  # noqa: F401  (its errors name what is missing)

    _show_devices()
    click.echo('ready')


def _show(name: str, found: str) -> None:
    click.echo(f'{name:<18}{found}')


def _show_devices() -> None:
    import torch

    devices = {'cpu': f'CPU, {torch.get_num_threads()} threads'}
    for index in range(torch.cuda.device_count()):
        devices[f'cuda:{index}'] = torch.cuda.get_device_name(index)
    for device, name in devices.items():
        _show(device, f'{name}; mmcv ops {_ops_on(device)}')
    if len(devices) == 1:
        built = torch.version.cuda
        _show('GPU', f'none; torch is built for CUDA {built}' if built else 'none')


def _ops_on(device: str) -> str:
    """Tell whether mmcv's compiled ops run on a device, by trying one."""
    import torch
    from mmcv.ops import nms

    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=device)
    try:
        nms(boxes, torch.ones(1, device=device), 0.5)
    except Exception as error:
        return f'do not run ({type(error).__name__}: {error})'.partition('\n')[0]
    return 'run'


@click.command(cls=Command)
@click.option(
    '--out',
    type=Path,
    default='work_dirs/quickstart',
    show_default=True,
    help='Folder for all files.',
)
@click.option('--epochs', default=28, show_default=True, help='Epochs of training.')
@click.option('--train', default=400, show_default=True, help='Training images.')
@click.option('--val', default=100, show_default=True, help='Validation images.')
def quickstart(out: Path, epochs: int, train: int, val: int) -> None:
    """Train a small SSSD detector on a drawn data set.

    Draws shapes, trains on them, evaluates, and draws predictions, in about 5 minutes on 2 CPU cores.
    In a checkout, `bash tools/quickstart.sh` installs all that is needed first.

    \b
    Example:
      mmdet-sssd quickstart
    """
    from mmdet_sssd.commands.quickstart import run_quickstart

    config = find_config('sssd_retinanet_r18-small_own-data')
    run_quickstart(config, out, epochs, train, val)
