"""Commands that look at a model: its costs, and pictures."""

from pathlib import Path
from typing import Any

import click

from .group import Command
from .parameters import (
    KEY_VALUE,
    ListType,
    amp_option,
    arms_file_option,
    cfg_options_flag,
    config_argument,
    overrides_argument,
    parsed,
)


@click.command(cls=Command)
@config_argument(keep_scope=True)
@overrides_argument
@click.option(
    '--arms',
    type=ListType(),
    default='baseline,config',
    show_default=True,
    help='Arms as in compare, such as baseline,config,config+KEY=VALUE; the others are compared with '
    'the first.',
)
@arms_file_option
@click.option(
    '--shape',
    type=int,
    nargs=2,
    metavar='HEIGHT WIDTH',
    default=(800, 1344),
    show_default=True,
    help='Image size.',
)
@click.option(
    '--batch', type=click.IntRange(min=1), default=2, show_default=True, help='Images per step.'
)
@click.option(
    '--objects', type=click.IntRange(min=0), default=8, show_default=True, help='Objects per image.'
)
@click.option('--device', help='cpu, cuda:1, …  [default: the GPU if there is one]')
@amp_option
@click.option(
    '--steps',
    type=click.IntRange(min=1),
    default=15,
    show_default=True,
    help='Timed steps per arm.',
)
@click.option('--json', type=Path, metavar='OUT', help='File for the results.')
@click.option(
    '--profile',
    type=Path,
    metavar='DIR',
    help='Folder for a trace of a step, for Perfetto, and the slowest operators, of each arm.',
)
def benchmark(overrides: tuple[str, ...], **options: Any) -> None:
    """Measure the costs of training steps, stock and distilled.

    Trains steps of a detector and its distilled arms in turn, in one process, on random images and
    objects; needs neither data nor weights. Prints step times, operations, memory, and their ratios.
    CONFIG has a stock detector or a distiller.

    \b
    Examples:
      mmdet-sssd benchmark mmdet::retinanet/retinanet_r50_fpn_1x_coco.py
      mmdet-sssd benchmark my_config.py --shape 640 640 --batch 8 --amp --json costs.json
      mmdet-sssd benchmark my_config.py --arms baseline,paper,paper+dim=channel --profile trace
    """
    from mmdet_sssd.commands.benchmark.benchmark import BenchmarkOptions, run_benchmark

    run_benchmark(BenchmarkOptions(cfg_options=parsed(overrides), **options))


@click.command(cls=Command)
@config_argument()
@click.argument('checkpoint')
@click.argument('rest', nargs=-1, metavar='[IMAGE]... [KEY=VALUE]...')
@cfg_options_flag
@click.option(
    '--out', type=Path, default='visualized', show_default=True, help='Folder to write to.'
)
@click.option('--score-thr', default=0.3, show_default=True, help='Lowest score to draw.')
@click.option('--num-images', default=3, show_default=True, help='Number of images without IMAGE.')
@click.option('--device', default='cpu', show_default=True, help='Device to run on.')
def visualize(config: str, checkpoint: str, rest: tuple[str, ...], **options: Any) -> None:
    """Draw what student and teacher see: predictions, and features level by level.

    IMAGE is the path or file name of an image in the config's validation data; without any, some of
    them are drawn, a picture each. CHECKPOINT has to have the teacher. (For the predictions of any
    detector, test with --show-dir.)

    \b
    Examples:
      mmdet-sssd visualize my_config.py work_dirs/my_config/epoch_24.pth
      mmdet-sssd visualize my_config.py work_dirs/my_config/epoch_24.pth a.jpg b.jpg --out seen
    """
    from mmdet_sssd.commands.visualization import draw_images
    from mmdet_sssd.config_tree import config_of

    changes = [text for text in rest if KEY_VALUE.match(text)]
    images = [text for text in rest if text not in changes]
    cfg = config_of(config)
    cfg.merge_from_dict(parsed(tuple(changes)))
    draw_images(cfg, checkpoint, images, **options)
