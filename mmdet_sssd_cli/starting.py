"""Commands for the first steps: check the installation, and try it."""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

from .group import Command

FAMILIES = {
    'OpenMMLab': ('mmengine', 'mmcv', 'mmdet'),
    'OneDL': ('onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection'),
}
MISSING = 'not installed'


@click.command(cls=Command, name='setup-check')
def setup_check() -> None:
    """Show what is installed and on which devices it runs.

    If something is missing, says what to do.

    \b
    Example:
      mmdet-sssd setup-check
    """
    click.echo(f'{"Python":<12}{platform.python_version()} ({sys.executable})')
    click.echo(f'{"torch":<12}{_version("torch")}')
    for family, names in FAMILIES.items():
        versions = [_version(name) for name in names]
        if any(x != MISSING for x in versions):
            pairs = zip(names, versions, strict=True)
            click.echo(f'{family:<12}{", ".join(f"{name} {x}" for name, x in pairs)}')
    click.echo(f'{"mmdet_sssd":<12}{_version("mmdet_sssd")}')
    click.echo(f'{"mmcv ops":<12}{_ops()}')
    click.echo(f'{"devices":<12}{_devices()}')
    import mmdet_sssd  # noqa: F401  (its errors name what is missing)

    click.echo('ready')


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return MISSING


def _ops() -> str:
    """List the devices on which mmcv's compiled ops run, by trying one on each."""
    try:
        import torch
        from mmcv.ops import nms
    except Exception as error:
        return f'none ({_first_line(error)})'
    works = []
    for device in ['cpu', *['cuda'] * torch.cuda.is_available()]:
        boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=device)
        try:
            nms(boxes, torch.ones(1, device=device), 0.5)
            works.append(device)
        except Exception as error:
            works.append(f'not on {device} ({_first_line(error)})')
    return ', '.join(works)


def _devices() -> str:
    try:
        import torch
    except Exception as error:
        return f'unknown ({_first_line(error)})'
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    cpu = f'CPU, {torch.get_num_threads()} threads'
    if not gpus:
        built = f'torch is built for CUDA {torch.version.cuda}' if torch.version.cuda else ''
        return f'{cpu}; no GPU{built and f" ({built})"}'
    return ', '.join([*gpus, cpu]) + f' (CUDA {torch.version.cuda})'


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return f'{type(error).__name__}: {lines[0] if lines else ""}'


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

    run_quickstart(out, epochs, train, val)
