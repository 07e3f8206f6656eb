"""Does distillation help on my data? Train a detector in several ways with several seeds, and compare.

Every arm is trained with every seed on the same data and schedule, each run in a process of its own.
At the end: tables with intervals (Markdown, CSV, JSON) and plots. The same command again goes on
where it was stopped.

Examples:
    mim run mmdet_sssd compare my_config.py --arms baseline,lgd,sssd --seeds 5
    mim run mmdet_sssd compare my_config.py --sweep distill_coef=1,3,10,30 --work-dir work_dirs/coef
    mim run mmdet_sssd compare --report-only --results work_dirs/compare_my_config/results
"""

import os
import shlex
import signal
import sys
from argparse import (
    ArgumentParser,
    ArgumentTypeError,
    Namespace,
    RawDescriptionHelpFormatter,
)
from pathlib import Path
from typing import Any

from mmengine.config import DictAction

from mmdet_sssd.commands.comparison.study import Study, StudyOptions
from mmdet_sssd.commands.mmdet_tools import user_errors_last


def main() -> None:
    """Run or report, and tell by the exit code whether every cell is there."""
    args = parse_args()
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.default_int_handler)  # what was started is stopped
    try:
        failures = Study(StudyOptions(**vars(args), command=command_line())).run()
    except KeyboardInterrupt:
        sys.exit('stopped; the same command goes on from the last checkpoints')
    sys.exit(1 if failures else 0)


def command_line() -> str:
    """Write down what was called, with the environment that configs for one's own data read."""
    names = sorted(name for name in os.environ if name.startswith('SSSD_'))
    settings = [f'{name}={shlex.quote(os.environ[name])}' for name in names]
    return ' '.join([*settings, 'compare', shlex.join(sys.argv[1:])])


def parse_args() -> Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument(
        'config',
        nargs='?',
        help='config of a stock detector (a file, or a name like mmdet::fcos/….py) or with a '
        'distiller; --report-only needs none',
    )
    add_what(parser.add_argument_group('what is compared'))
    add_how(parser.add_argument_group('how it is run'))
    add_report(parser.add_argument_group('what is reported'))
    return parser.parse_args()


def add_what(group: Any) -> None:
    """Add the options for arms and seeds."""
    group.add_argument(
        '--arms',
        type=lambda text: text.split(','),
        help='built in: baseline, sssd, lgd, sssd_channel, sssd_all, sssd_fixed, sssd_no_phases, '
        'baseline_longer (as much training time as sssd), config (the distiller as CONFIG has it); '
        'any with changes, as in sssd+distill_coef=3 (default: baseline,sssd; with --sweep baseline; '
        'with --report-only all that have results)',
    )
    group.add_argument('--arms-file', help='arms of your own: arms = dict(name=dict(base=…, …))')
    group.add_argument(
        '--seeds',
        type=read_seeds,
        default=read_seeds('5'),
        help='5: the seeds 0 to 4; 3,4,5 or 3,: these (default: 5)',
    )
    group.add_argument('--sweep', help='KEY=VALUE,VALUE,…: an arm for each value, and a plot')
    group.add_argument('--sweep-arm', default='sssd', help='the arm to vary (default: sssd)')
    group.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        help='changes to CONFIG, all arms',
    )


def add_how(group: Any) -> None:
    """Add the options for running."""
    group.add_argument(
        '--work-dir', type=Path, help='logs and checkpoints (default: work_dirs/compare_CONFIG)'
    )
    group.add_argument(
        '--results',
        type=Path,
        help='results and reports; what has a result there is not trained again. Keep its '
        'results.json: --report-only makes the rest of it (default: WORK_DIR/results)',
    )
    group.add_argument(
        '--jobs',
        type=int,
        help='runs at a time; on GPUs one each (default: 1; with --executor slurm what Slurm lets run)',
    )
    group.add_argument(
        '--executor',
        choices=('local', 'slurm'),
        default='local',
        help='where runs are started: on this machine, or as jobs of Slurm (default: local)',
    )
    group.add_argument(
        '--slurm-options',
        nargs='+',
        action=DictAction,
        default={},
        help='options of sbatch for each run, as in partition=gpu time=240 gpus_per_node=1 (time in '
        'minutes; signal_delay_s: how many seconds before that a run saves; default: 90)',
    )
    group.add_argument(
        '--keep-checkpoints',
        choices=('none', 'last'),
        default='last',
        help='what stays of a finished run (default: last)',
    )
    group.add_argument(
        '--no-dry-run',
        dest='dry_run',
        action='store_false',
        help='train without rehearsing the first run of each arm',
    )


def add_report(group: Any) -> None:
    """Add the options for the report."""
    group.add_argument(
        '--split',
        choices=('val', 'test'),
        default='val',
        help="test: evaluate the last checkpoints on CONFIG's test data too (default: val)",
    )
    group.add_argument(
        '--against',
        type=lambda text: text.split(','),
        default=[],
        help='arms to list the differences to, too, as in --against lgd (default: the baseline alone)',
    )
    group.add_argument(
        '--report-only',
        action='store_true',
        help='train nothing; report what has results (with --arms: these alone)',
    )
    group.add_argument(
        '--model-zoo',
        action='store_true',
        help="list beside it the AP of mmdet's model zoo and of the papers (COCO)",
    )


def read_seeds(text: str) -> list[int]:
    """Read a number of seeds, or the seeds."""
    parts = [part.strip() for part in text.split(',') if part.strip()]
    if not all(part.isdecimal() for part in parts) or not parts or text.strip() == '0':
        raise ArgumentTypeError(f'{text!r}; accepted: a number above 0, or seeds like 3,4,5 or 3,')
    return [int(part) for part in parts] if ',' in text else list(range(int(parts[0])))


if __name__ == '__main__':
    with user_errors_last():
        main()
