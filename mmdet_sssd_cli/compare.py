"""Does distillation help on my data? The options of ``compare``, and its end."""

import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import click

from .group import DEBUG, USER_ERROR, Command
from .parameters import ListType, arms_file_option, config_argument, overrides_argument, parsed


def read_seeds(_context: click.Context, _parameter: click.Parameter, text: str) -> list[int]:
    """Read ``5`` as the seeds 0 to 4, and ``3,4,5`` or ``3,`` as these."""
    parts = [part.strip() for part in text.split(',') if part.strip()]
    if not all(part.isdecimal() for part in parts) or not parts or text.strip() == '0':
        raise click.BadParameter(f'{text!r}; accepted: a number above 0, or seeds like 3,4,5 or 3,')
    return [int(part) for part in parts] if ',' in text else list(range(int(parts[0])))


@click.command(cls=Command)
@config_argument(required=False, keep_scope=True)
@overrides_argument
@click.option(
    '--arms',
    type=ListType(),
    help='Built in: baseline, config (the distiller as CONFIG has it, or as wrap would add it), '
    'the recipes gentle, paper and lgd, with the teacher or images that wrap gave CONFIG also '
    'structural_kd, sad, semi and backbone; any with changes, as in '
    'paper+distill_coef=3, or baseline+stretch=1.2 (a longer schedule).  [default: '
    'baseline,config; with --report-only all that have results]',
)
@arms_file_option
@click.option(
    '--seeds',
    callback=read_seeds,
    default='5',
    show_default=True,
    help='5: the seeds 0 to 4; 3,4,5 or 3,: these.',
)
@click.option(
    '--work-dir',
    type=Path,
    help='Logs and checkpoints.  [default: work_dirs/compare_CONFIG]',
)
@click.option(
    '--results',
    type=Path,
    help='Results and reports; what has a result there is not trained again. Keep its '
    'results.json: --report-only makes the rest of it.  [default: WORK_DIR/results]',
)
@click.option(
    '--jobs',
    type=click.IntRange(min=1),
    help='Runs at a time; on GPUs one each.  [default: 1; on Slurm what it lets run]',
)
@click.option(
    '--slurm',
    type=ListType(),
    help='Make each run a job of Slurm, with these options of sbatch, as in '
    'partition=gpu,time=240,gpus_per_node=1 (time in minutes; signal_delay_s: how many seconds '
    'before that a run saves, 90 unless given).',
)
@click.option(
    '--keep-checkpoints',
    type=click.Choice(('none', 'last')),
    default='last',
    show_default=True,
    help='What stays of a finished run.',
)
@click.option(
    '--no-dry-run',
    'dry_run',
    is_flag=True,
    flag_value=False,
    default=True,
    help='Train without rehearsing the first run of each arm.',
)
@click.option(
    '--split',
    type=click.Choice(('val', 'test')),
    default='val',
    show_default=True,
    help="test: evaluate the last checkpoints on CONFIG's test data too.",
)
@click.option(
    '--against',
    type=ListType(),
    default='',
    help='Arms to list the differences to, too, as in --against lgd.  [default: the baseline '
    'alone]',
)
@click.option(
    '--report-only',
    is_flag=True,
    help='Train nothing; report what has results (with --arms: these alone).',
)
def compare(overrides: tuple[str, ...], **options: Any) -> int:
    """Train a detector in several ways with several seeds, and compare: does it help on my data?

    Every arm is trained with every seed on the same data and schedule, each run in a process of its
    own. At the end: tables with intervals (Markdown, CSV) and plots. The same command again goes on
    where it was stopped. CONFIG has a stock detector or a distiller; --report-only needs none.

    \b
    Examples:
      mmdet-sssd compare my_config.py --arms baseline,config,lgd --seeds 5
      mmdet-sssd compare my_config.py --arms baseline,paper,paper+distill_coef=3
      mmdet-sssd compare --report-only --results work_dirs/compare_my_config/results
    """
    from mmdet_sssd.commands.comparison.study import Study
    from mmdet_sssd.runs import PreemptionHook

    os.environ.setdefault(DEBUG, '1')  # logs of runs have it all
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.default_int_handler)  # what was started is stopped
    if options['slurm'] is not None:
        options['slurm'] = parsed(tuple(options['slurm']))
    study = Study(cfg_options=parsed(overrides), command=command_line(), **options)
    try:
        failures = study.run()
    except KeyboardInterrupt:
        click.echo('stopped; the same command goes on from the last checkpoints', err=True)
        return PreemptionHook.EXIT_CODE
    return USER_ERROR if failures else 0


def command_line() -> str:
    """Write down what was called, with the environment that configs for one's own data read."""
    names = sorted(name for name in os.environ if name.startswith('SSSD_'))
    settings = [f'{name}={shlex.quote(os.environ[name])}' for name in names]
    args = sys.argv[1:] if sys.argv[1:2] != ['compare'] else sys.argv[2:]
    return ' '.join([*settings, 'mmdet-sssd compare', shlex.join(args)])
