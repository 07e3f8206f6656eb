"""All commands, in the order of a user's work."""

import click

from .compare import compare
from .group import CommandLine
from .making import convert_lgd, export, shapes, wrap
from .measuring import benchmark, visualize
from .starting import quickstart, setup_check
from .training import dry_run, test, train


@click.group(cls=CommandLine)
@click.version_option(package_name='mmdet_sssd', message='%(package)s %(version)s')
def command_line() -> None:
    """Self-distillation for MMDetection: a teacher in training, the same detector at inference.

    \b
    Examples:
      mmdet-sssd setup-check
      mmdet-sssd wrap mmdet::retinanet/retinanet_r50_fpn_1x_coco.py --out my_config.py
      mmdet-sssd dry-run my_config.py
      mmdet-sssd train my_config.py model.economy=False
      mmdet-sssd compare my_config.py --seeds 5

    \b
    Exit codes: 0 done; 1 an error in config, data or files; 2 an unknown command or option;
    75 preempted and saved (repeat the command to continue; train needs --resume); others: a bug.
    For completion in bash (or zsh, fish), add to ~/.bashrc:
      eval "$(_MMDET_SSSD_COMPLETE=bash_source mmdet-sssd)"
    """


for command in (
    setup_check,
    quickstart,
    wrap,
    dry_run,
    train,
    test,
    compare,
    benchmark,
    visualize,
    export,
    convert_lgd,
    shapes,
):
    command_line.add_command(command)
