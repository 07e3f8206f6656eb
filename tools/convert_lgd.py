"""Convert the teacher and adapter of one of LGD's released checkpoints for SSSDDistiller.

The student in it, a detectron2 model, is not converted.

Example:
    mim run mmdet_sssd convert_lgd model_final.pth --out lgd_retinanet.pth
    mim train mmdet_sssd lgd_retinanet_r50_fpn_ms-2x_coco.py --cfg-options load_from=lgd_retinanet.pth
"""

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter

from mmdet_sssd.checkpoints import convert_lgd
from mmdet_sssd.commands.mmdet_tools import user_errors_last


def main() -> None:
    """Read the command line and convert."""
    args = parse_args()
    convert_lgd(args.checkpoint, args.out, args.context_box)


def parse_args() -> Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument(
        'checkpoint', help='checkpoint of the reference code, weights under "model"'
    )
    parser.add_argument('--out', required=True, help='file to write')
    parser.add_argument(
        '--no-context-box',
        dest='context_box',
        action='store_false',
        help='the teacher was trained without a context box (addCtxBox=NO in the name of its config: '
        'FCOS R-50, Faster R-CNN, Mask R-CNN)',
    )
    return parser.parse_args()


if __name__ == '__main__':
    with user_errors_last():
        main()
