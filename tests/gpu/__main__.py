"""Everything that only a GPU can show, in one table: ``bash tools/gpu_check.sh``.

Each group of checks runs in a process of its own, so that none is harmed by another's crash. Needs no
network, no data and no weights. On a machine without a GPU it runs what runs there, and says so.
"""

import importlib
import json
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from dataclasses import asdict
from pathlib import Path

from .checks import FAILED, SKIPPED, Result, Settings, circumstances, run_group, write_report

GROUPS = {  # modules and their checks, the most telling first
    'ops': ('ops', 'CHECKS'),
    'numbers': ('numbers', 'CHECKS'),
    'training': ('training', 'CHECKS'),
    'runs': ('runs', 'CHECKS'),
    'costs': ('costs', 'CHECKS'),
    'compiled': ('training', 'COMPILED'),
}


def main() -> int:
    """Make the checks; the exit code is 0 if none failed."""
    args = parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.group:
        return run_one_group(args.group, args.out, args.short)
    where, results, end = {}, [], time.monotonic() + 60 * args.minutes
    for group in args.groups:
        found, ended = run_apart(group, args, end - time.monotonic())
        where = found or where
        results += ended
        write_report(args.out, where, results)
    print((args.out / 'gpu_check.md').read_text(encoding='utf-8'))
    return int(any(x.result == FAILED for x in results))


def parse_args() -> Namespace:
    """Read the command line."""
    parser = ArgumentParser(
        prog='gpu_check.sh', description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument('--short', action='store_true', help='small detectors and images')
    parser.add_argument(
        '--out', type=Path, default=Path('work_dirs/gpu_check'), help='folder for the results'
    )
    parser.add_argument(
        '--groups',
        type=lambda text: text.split(','),
        default=[*GROUPS],
        help=f'some of {",".join(GROUPS)} (default: all)',
    )
    parser.add_argument(
        '--minutes', type=float, default=8, help='what is not done by then is skipped (default: 8)'
    )
    parser.add_argument('--group', choices=GROUPS, help='make these checks in this process')
    args = parser.parse_args()
    if unknown := set(args.groups) - set(GROUPS):
        parser.error(f'--groups has {min(unknown)}; accepted: {", ".join(GROUPS)}')
    return args


def run_one_group(group: str, out: Path, short: bool) -> int:
    """Make a group's checks in this process, and write each result when it is there."""
    import torch
    from mmdet.utils import register_all_modules
    from mmengine.model import BaseModule

    import mmdet_sssd  # noqa: F401  (registers the package's modules)

    from .. import quick_configs  # noqa: F401

    register_all_modules()
    BaseModule._dump_init_info = lambda *_: None  # a paragraph for each parameter
    settings = Settings('cuda' if torch.cuda.is_available() else 'cpu', out, short)
    module, checks = GROUPS[group]
    checks = getattr(importlib.import_module(f'tests.gpu.{module}'), checks)
    with lines_of(group, out).open('w', encoding='utf-8', buffering=1) as lines:
        lines.write(json.dumps(circumstances(settings)) + '\n')
        lines.write(json.dumps([*checks]) + '\n')
        for result in run_group(group, checks, settings):
            lines.write(json.dumps(asdict(result)) + '\n')
    return 0


def run_apart(group: str, args: Namespace, seconds: float) -> tuple[dict, list[Result]]:
    """Make a group's checks in a process of its own.

    Returns:
        Where they were made, and a result for each of them, also if the process crashed or was killed
        because no time was left.
    """
    lines_of(group, args.out).unlink(missing_ok=True)
    print(f'{group} …', flush=True)
    with (args.out / f'{group}.log').open('w', encoding='utf-8') as log:
        try:
            code = subprocess.run(
                command_of(group, args),
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=max(seconds, 0.1),
            ).returncode
            problem = f'the process ended with code {code}: {last_line(log.name)}' if code else ''
        except subprocess.TimeoutExpired:
            problem = 'no time was left'
    return results_of(group, args.out, problem)


def command_of(group: str, args: Namespace) -> list[str]:
    """Make the command of a group's process."""
    command = [sys.executable, '-W', 'ignore', '-m', 'tests.gpu', '--group', group]
    return [*command, '--out', str(args.out), *['--short'] * args.short]


def last_line(log: str) -> str:
    """Give the last line of a log, which is a process's error."""
    lines = Path(log).read_text(encoding='utf-8', errors='replace').split('\n')
    return next((x for x in reversed(lines) if x.strip()), f'{log} is empty')


def lines_of(group: str, out: Path) -> Path:
    """Name the file that a group's process writes its results to."""
    return out / f'{group}.jsonl'


def results_of(group: str, out: Path, problem: str) -> tuple[dict, list[Result]]:
    """Read what a group's process wrote; what it did not come to has its problem as the reason.

    Args:
        group: The group.
        out: Folder of the results.
        problem: Why its process ended early; empty if it did not.
    """
    outcome = SKIPPED if problem == 'no time was left' else FAILED
    path = lines_of(group, out)
    lines = path.read_text(encoding='utf-8').splitlines() if path.is_file() else []
    if len(lines) < 2:
        return {}, [Result(group, outcome, reason=problem or 'no results')]
    where, names, *made = map(json.loads, lines)
    results = [Result(**x) for x in made]
    for index, name in enumerate(names[len(made) :]):
        text = problem if not index or outcome == SKIPPED else f'not reached: {problem}'
        results.append(Result(f'{group}/{name}', outcome if not index else SKIPPED, reason=text))
    return where, results


if __name__ == '__main__':
    sys.exit(main())
