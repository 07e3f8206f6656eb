"""Training and evaluation."""

import os
from typing import Any

import click

from .group import Command
from .mim import go_on_in_child, is_child_of_mim
from .parameters import KEY_VALUE, amp_option, config_argument, overrides_argument, parsed

auto_scale_lr_option = click.option(
    '--auto-scale-lr', is_flag=True, help='Fit the learning rate to the batch size.'
)
launcher_option = click.option(
    '--launcher',
    type=click.Choice(['none', 'pytorch', 'slurm', 'mpi']),
    default='none',
    show_default=True,
    help='Launcher of the processes.',
)
local_rank_option = click.option(
    '--local-rank',
    '--local_rank',
    type=int,
    hidden=True,
    expose_value=False,
    callback=lambda _context, _parameter, rank: os.environ.setdefault('LOCAL_RANK', str(rank or 0)),
    help='For torch.distributed.launch.',
)


@click.command(cls=Command)
@config_argument()
@overrides_argument
@click.option('--work-dir', help='Logs and checkpoints.  [default: work_dirs/CONFIG]')
@click.option('--dry-run', is_flag=True, help='Rehearse only, like the command dry-run.')
@amp_option
@auto_scale_lr_option
@click.option(
    '--resume',
    is_flag=False,
    flag_value='auto',
    metavar='[FILE]',
    help='Resume from the latest checkpoint in the work directory, or from FILE.',
)
@launcher_option
@local_rank_option
def train(config: str, overrides: tuple[str, ...], **options: Any) -> None:
    """Train a detector.

    CONFIG is a file, the name of a config in mmdet_sssd, or mmdet::FOLDER/NAME.py; KEY=VALUE changes
    it.

    \b
    Examples:
      mmdet-sssd train my_config.py
      mmdet-sssd train sssd_retinanet_r50_fpn_2x_coco train_cfg.max_epochs=12
      mmdet-sssd train my_config.py default_hooks.distill_coef.ratio=0.1 model.distill_loss.dim=channel
      mmdet-sssd train my_config.py --resume
      torchrun --nproc-per-node 8 -m mmdet_sssd train my_config.py --launcher pytorch
    """
    if KEY_VALUE.match(options['resume'] or ''):  # --resume KEY=VALUE
        overrides = (options['resume'], *overrides)
        options['resume'] = 'auto'
    if is_child_of_mim():
        go_on_in_child()

    from mmdet_sssd.commands.training import run_training

    run_training(config, parsed(overrides), **options)


@click.command(cls=Command, name='dry-run')
@config_argument()
@overrides_argument
@click.option('--work-dir', help="Folder with --resume's checkpoint.  [default: work_dirs/CONFIG]")
@amp_option
@auto_scale_lr_option
@click.option('--resume', is_flag=True, help="Start from the work directory's checkpoint.")
def dry_run(config: str, overrides: tuple[str, ...], resume: bool, **options: Any) -> None:
    """Rehearse a training run without writing files.

    Checks data, labels and weights, runs one training step and one validation batch, and prints a
    summary.

    \b
    Example:
      mmdet-sssd dry-run my_config.py train_dataloader.batch_size=4
    """
    from mmdet_sssd.commands.training import run_training

    resumed = 'auto' if resume else None
    run_training(config, parsed(overrides), resume=resumed, dry_run=True, **options)


@click.command(cls=Command)
@config_argument()
@click.argument('checkpoint')
@overrides_argument
@click.option('--work-dir', help='Folder for the metrics.  [default: work_dirs/CONFIG]')
@click.option('--out', metavar='FILE.pkl', help='File for the predictions.')
@click.option('--show', is_flag=True, help='Show the predictions in a window.')
@click.option(
    '--show-dir', metavar='DIR', help='Draw the predictions into DIR in the work directory.'
)
@click.option('--wait-time', default=2.0, show_default=True, help='Seconds per image with --show.')
@click.option('--tta', is_flag=True, help='Test-time augmentation.')
@launcher_option
@local_rank_option
def test(config: str, checkpoint: str, overrides: tuple[str, ...], **options: Any) -> None:
    """Evaluate a checkpoint.

    \b
    Example:
      mmdet-sssd test my_config.py work_dirs/my_config/epoch_12.pth
    """
    from mmdet_sssd.commands.training import run_test

    run_test(config, checkpoint, parsed(overrides), **options)
