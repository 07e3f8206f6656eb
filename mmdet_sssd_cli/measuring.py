"""What tells about a method or a model: its costs, its pictures, the detectors that it suits."""

import re
from pathlib import Path
from typing import Any

import click

from .config_names import detectors_list
from .group import Command
from .parameters import (
    KEY_VALUE,
    ListType,
    cfg_options_flag,
    config_argument,
    overrides_argument,
    parsed,
)

TRIED = (
    "Distilled, one config of each of mmdet's folders",
    'In scope, but stock does not train a step of it on a CPU',
    'Out of scope',
)


@click.command(cls=Command)
@config_argument(keep_scope=True)
@overrides_argument
@click.option(
    '--arms',
    type=ListType(),
    default='baseline,sssd',
    show_default=True,
    help='As compare takes them, such as baseline,sssd,sssd+KEY=VALUE; the others are compared with '
    'the first.',
)
@click.option('--arms-file', help='Arms of your own: arms = dict(name=dict(base=…, …)).')
@click.option(
    '--shape',
    type=int,
    nargs=2,
    metavar='HEIGHT WIDTH',
    default=(800, 1344),
    show_default=True,
    help='Of the images.',
)
@click.option('--batch', default=2, show_default=True, help='Images in a step.')
@click.option('--objects', default=8, show_default=True, help='Objects in an image.')
@click.option('--device', help='cpu, cuda:1, …  [default: the GPU if there is one]')
@click.option('--amp', is_flag=True, help='Automatic mixed precision.')
@click.option('--steps', default=15, show_default=True, help='Timed, of each arm.')
@click.option('--json', type=Path, metavar='OUT', help='File for the results.')
@click.option(
    '--profile',
    type=Path,
    metavar='DIR',
    help='Folder for a trace and the operators by part.',
)
def benchmark(overrides: tuple[str, ...], **options: Any) -> None:
    """Measure what a training step costs with distillation, and where.

    Trains steps of a detector and of its distilled arms in turn, in one process, on random images
    and objects; no data and no weights are needed. At the end: step times, operations by part,
    memory, and their ratios. CONFIG has a stock detector or a distiller.

    \b
    Examples:
      mmdet-sssd benchmark mmdet::retinanet/retinanet_r50_fpn_1x_coco.py
      mmdet-sssd benchmark my_config.py --shape 640 640 --batch 8 --amp --json costs.json
      mmdet-sssd benchmark my_config.py --arms baseline,sssd,sssd+dim=channel --profile trace
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
@click.option('--score-thr', default=0.3, show_default=True, help='Least score that is drawn.')
@click.option('--num-images', default=9, show_default=True, help='How many, without IMAGE.')
@click.option('--device', default='cpu', show_default=True, help='Device to run on.')
def visualize(
    config: str, checkpoint: str, rest: tuple[str, ...], num_images: int, **options: Any
) -> None:
    """Draw what a detector predicts, or what student and teacher make of an image.

    Without IMAGE, some validation images are drawn side by side with ground truth and predictions,
    of any detector. With IMAGE, a path or file name of an image in the config's data sets, student
    and teacher features are drawn level by level, one picture per image; this takes a checkpoint
    that has the teacher.

    \b
    Examples:
      mmdet-sssd visualize my_config.py work_dirs/my_config/epoch_24.pth
      mmdet-sssd visualize my_config.py work_dirs/my_config/epoch_24.pth a.jpg b.jpg --out seen
    """
    from mmdet_sssd.commands.visualization import draw_images, draw_predictions

    images = [text for text in rest if not KEY_VALUE.match(text)]
    overrides = parsed(tuple(text for text in rest if KEY_VALUE.match(text)))
    if images:
        draw_images(config, checkpoint, images, overrides, **options)
    else:
        draw_predictions(config, checkpoint, num_images, overrides, **options)


@click.command(cls=Command)
@click.argument('configs', nargs=-1, metavar='[CONFIG|FOLDER]...')
@click.option(
    '--all', 'check_all', is_flag=True, help="Check one config of each of mmdet's folders."
)
@click.option('--out', type=Path, help='File for the table (Markdown); else it is printed.')
@click.option('--memory', default=14.0, show_default=True, help='GiB that a check may address.')
@click.option('--seconds', default=900.0, show_default=True, help='Time that a check may take.')
def detectors(configs: tuple[str, ...], check_all: bool, **options: Any) -> None:
    """List the detectors that were tried, or check some.

    Without arguments: of each folder of mmdet's configs, whether its detectors can be distilled.
    With config files, folders with configs, or names of mmdet's folders: trains a step of each,
    stock and distilled, on random weights and two small random images, on the CPU, each in a process
    of its own. A config is ok if the student's losses and buffers equal the stock detector's, every
    parameter that should has a gradient, and the student predicts.

    \b
    Examples:
      mmdet-sssd detectors
      mmdet-sssd detectors ssd my_config.py
    """
    if configs or check_all:
        from mmdet_sssd.commands.sweep import sweep

        sweep(configs, **options)
    else:
        click.echo(_tried())


def _tried() -> str:
    """Take the rows of the tables of configs out of the list of detectors that were tried."""
    text = detectors_list().read_text(encoding='utf-8')
    parts = re.split('^(?:In scope, but|Out of scope|## )', text, flags=re.M)
    lines = []
    for title, part in zip(TRIED, parts, strict=False):
        lines += [f'{title}:'] if not lines else ['', f'{title}:']
        for name, more in re.findall(r'^\| `([^`]+)` \|(?:.*\|)? (.*) \|$', part, flags=re.M):
            lines.append(f'  mmdet::{name}.py {more and f"({more})"}'.rstrip())
    return '\n'.join(lines)
