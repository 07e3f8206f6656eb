"""Find out which detectors can be distilled: train a step of each, stock and distilled, and compare.

    mim run mmdet_sssd check_detectors                      one config of each of mmdet's folders
    mim run mmdet_sssd check_detectors ssd my_config.py     these folders and files only
    python tools/check_detectors.py configs/lgd             all configs of a folder

Random weights, two small random images, on the CPU; each config in a process of its own. Of a
config with a distiller that one is trained, and its student as the stock detector. A config is ok if
the student's losses and buffers equal the stock detector's, every parameter that should has a
gradient, and the student predicts.
"""

import argparse
from pathlib import Path

from mmdet_sssd.commands.mmdet_tools import user_errors_last
from mmdet_sssd.commands.sweep import SweepResult, as_table, check_apart, find_configs


def main() -> None:
    """Check the configs one by one and write the table as it grows."""
    args = parse_args()
    results: list[SweepResult] = []
    with user_errors_last():
        configs = find_configs(args.configs)
    for config in configs:
        results.append(check_apart(config, args.memory, args.seconds))
        print(f'[{len(results)}/{len(configs)}] {results[-1]}', flush=True)
        if args.out:
            args.out.write_text(as_table(results), encoding='utf-8')
    if not args.out:
        print(as_table(results))


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'configs',
        nargs='*',
        help="config files, folders with configs, or names of mmdet's folders; all of mmdet's, if "
        'none is given',
    )
    parser.add_argument(
        '--out', type=Path, help='file for the table (Markdown); else it is printed'
    )
    parser.add_argument('--memory', type=float, default=14, help='GiB that a check may address')
    parser.add_argument('--seconds', type=float, default=900, help='time that a check may take')
    return parser.parse_args()


if __name__ == '__main__':
    main()
