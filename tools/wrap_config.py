"""Write the distilled config of a stock config: a short file that inherits it.

Example:
    mim run mmdet_sssd wrap_config mmdet::retinanet/retinanet_r50_fpn_1x_coco.py --out my_config.py
"""

from argparse import ArgumentParser, BooleanOptionalAction, Namespace, RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any

from mmdet_sssd.commands.mmdet_tools import user_errors_last
from mmdet_sssd.commands.wrapping import WrappingOptions, write_wrapped_config
from mmdet_sssd.errors import ConfigError
from mmdet_sssd.hooks import AdaptiveDistillCoefHook
from mmdet_sssd.models import losses

LOSSES = [cls.__name__ for cls in losses.FeatureLoss.__subclasses__()]


def main() -> None:
    """Write it."""
    args = vars(parse_args())
    stock, out, force, build = (args.pop(name) for name in ('stock', 'out', 'force', 'build'))
    if out.exists() and not force:
        raise ConfigError(f'--out {out} is there already; --force replaces it')
    notes = write_wrapped_config(stock, out, WrappingOptions(**args), build)
    print(f'{out} distills {stock}; check it with data: mim train mmdet_sssd {out} --dry-run')
    for note in notes:
        print(f'note: {note}')


def parse_args() -> Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument('stock', help='config file, or a name like mmdet::fcos/….py')
    parser.add_argument('--out', type=Path, required=True, help='config file to write')
    parser.add_argument('--force', action='store_true', help='replace --out if it is there')
    parser.add_argument(
        '--no-build', dest='build', action='store_false', help='write it without building the model'
    )
    add_distillation_options(parser.add_argument_group('distillation'))
    add_data_options(parser.add_argument_group("one's own data (COCO format)"))
    return parser.parse_args()


def add_distillation_options(group: Any) -> None:
    """Add what is set in ``model`` and in the hooks."""
    group.add_argument('--loss', choices=LOSSES, help='distillation loss (default: JSDistanceLoss)')
    group.add_argument(
        '--dim',
        choices=losses.JSDistanceLoss.DIMS,
        help='what its distributions run over (default: spatial)',
    )
    group.add_argument('--tau', type=float, help='its temperature (default: 1)')
    group.add_argument(
        '--distill-coef', type=float, help="λ (default: the loss's own, 10 for JSDistanceLoss)"
    )
    group.add_argument(
        '--policy',
        choices=AdaptiveDistillCoefHook.POLICIES,
        help='how λ follows the learning rate (default: step)',
    )
    group.add_argument('--factor', type=float, help='what a step multiplies λ by (default: 2)')
    group.add_argument(
        '--max-decays', type=int, help='number of steps, -1 for no limit (default: 1)'
    )
    group.add_argument(
        '--context-box',
        action=BooleanOptionalAction,
        help='an object as large as the image in each image (default: on)',
    )
    group.add_argument(
        '--detach-appearance',
        action=BooleanOptionalAction,
        help="keep the teacher's gradients from neck and backbone (default: off)",
    )
    group.add_argument(
        '--masks',
        action='store_true',
        default=None,
        help='instance masks as regions; the pipelines are made to load them',
    )
    group.add_argument(
        '--economy',
        action='store_true',
        help='the cheapest settings: a step costs about 1.2 times that of stock, not 2 times',
    )
    group.add_argument(
        '--from-scratch',
        action='store_true',
        help='for a backbone without pretrained weights: train it from the first iteration',
    )


def add_data_options(group: Any) -> None:
    """Add what says where the data lies and what it shows; the rest stays as in the stock config."""
    group.add_argument('--data-root', help='folder of the data set')
    group.add_argument('--train-ann', help='annotation file to train on, in --data-root')
    group.add_argument('--val-ann', help='annotation file to validate and test on, in --data-root')
    group.add_argument('--train-img', help='image folder to train on, in --data-root')
    group.add_argument('--val-img', help='image folder to validate and test on, in --data-root')
    group.add_argument(
        '--classes',
        nargs='+',
        type=str,
        help='class names; by default read from the annotation file if --data-root or --train-ann '
        'is given',
    )


if __name__ == '__main__':
    with user_errors_last():
        main()
