"""Write a trained detector's detections as COCO annotations of images that have none.

Images on which nothing is found stay in the file.

Example:
    mim run mmdet_sssd make_pseudo_labels teacher.py teacher.pth --ann unlabelled.json \\
        --img-dir data/cells/images --out data/cells/annotations/pseudo.json
"""

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter

import mmdet_sssd  # noqa: F401  (registers the package's modules)
from mmdet_sssd.commands.mmdet_tools import user_errors_last
from mmdet_sssd.commands.pseudo_labels import make_pseudo_labels


def main() -> None:
    """Read the command line, predict and write."""
    args = parse_args()
    num_images, num_boxes = make_pseudo_labels(
        args.config,
        args.checkpoint,
        args.ann,
        args.img_dir,
        args.out,
        args.score_thr,
        args.device,
    )
    print(f'\n{num_boxes} boxes on {num_images} images lie in {args.out}')


def parse_args() -> Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument('config', help="the detector's config; a distiller's means its student")
    parser.add_argument('checkpoint', help='its weights')
    parser.add_argument('--ann', required=True, help='COCO file that lists the images')
    parser.add_argument('--img-dir', required=True, help='folder of the images')
    parser.add_argument('--out', required=True, help='COCO annotation file to write')
    parser.add_argument(
        '--score-thr', type=float, default=0.4, help='least score of a box; default: 0.4'
    )
    parser.add_argument('--device', help='device to predict on; default: a GPU if there is one')
    return parser.parse_args()


if __name__ == '__main__':
    with user_errors_last():
        main()
