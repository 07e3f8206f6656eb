"""What does a training step cost with distillation, and where?

Trains steps of a detector and of its distilled arms in turn, in one process, on random images and
objects; no data and no weights are needed. At the end: step times, operations by part, memory, and
their ratios.

Examples:
    mim run mmdet_sssd benchmark mmdet::retinanet/retinanet_r50_fpn_1x_coco.py
    mim run mmdet_sssd benchmark my_config.py --shape 640 640 --batch 8 --amp --json costs.json
    mim run mmdet_sssd benchmark my_config.py --arms baseline,sssd,sssd+dim=channel --profile trace
"""

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path

from mmengine.config import DictAction

from mmdet_sssd.commands.benchmark.benchmark import STEPS, BenchmarkOptions, run_benchmark
from mmdet_sssd.commands.mmdet_tools import user_errors_last


def main() -> None:
    """Measure and report."""
    run_benchmark(BenchmarkOptions(**vars(parse_args())))


def parse_args() -> Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument(
        'config',
        help='config of a stock detector (a file, or a name like mmdet::fcos/….py) or with a distiller',
    )
    parser.add_argument(
        '--arms',
        type=lambda text: text.split(','),
        default=['baseline', 'sssd'],
        help='as compare takes them, such as baseline,sssd,sssd+KEY=VALUE; the others are compared '
        'with the first (default: baseline,sssd)',
    )
    parser.add_argument('--arms-file', help='arms of your own: arms = dict(name=dict(base=…, …))')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        help='changes to CONFIG, all arms',
    )
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        metavar=('HEIGHT', 'WIDTH'),
        default=(800, 1344),
        help='of the images (default: 800 1344)',
    )
    parser.add_argument('--batch', type=int, default=2, help='images in a step (default: 2)')
    parser.add_argument('--objects', type=int, default=8, help='objects in an image (default: 8)')
    parser.add_argument('--device', help='cpu, cuda:1, … (default: the GPU if there is one)')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument(
        '--steps', type=int, default=STEPS, help=f'timed, of each arm (default: {STEPS})'
    )
    parser.add_argument('--json', type=Path, metavar='OUT', help='file for the results')
    parser.add_argument(
        '--profile', type=Path, metavar='DIR', help='folder for a trace and the operators by part'
    )
    return parser.parse_args()


if __name__ == '__main__':
    with user_errors_last():
        main()
