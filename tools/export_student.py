"""Write the student of a training checkpoint as a stock checkpoint and a stock config.

Stock mmdet runs them without this package.

Example:
    mim run mmdet_sssd export_student work_dirs/my_config/epoch_12.pth --out exported
"""

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter

from mmdet_sssd.checkpoints import export_student
from mmdet_sssd.commands.mmdet_tools import user_errors_last


def main() -> None:
    """Read the command line and export."""
    args = parse_args()
    export_student(args.checkpoint, args.out, args.config, args.name)


def parse_args() -> Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', help='checkpoint of a run with a distiller, finished or not')
    parser.add_argument('--out', required=True, help='folder to write to; made if it is not there')
    parser.add_argument('--config', help="the run's config; default: the one in the checkpoint")
    parser.add_argument('--name', help="what the files are called; default: the checkpoint's name")
    return parser.parse_args()


if __name__ == '__main__':
    with user_errors_last():
        main()
