"""Draw ground truth and predictions side by side on some validation images, into one PNG.

Usage: draw_predictions.py CONFIG CHECKPOINT OUT.png [--num-images N] [--score-thr S]
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

import cv2
import numpy as np
import torch
from mmdet.apis import DetInferencer
from mmdet.registry import DATASETS, VISUALIZERS
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from mmengine.structures import InstanceData

from mmdet_sssd.checkpoints import loading
from mmdet_sssd.commands.mmdet_tools import user_errors_last

COLUMNS = 3
CELL_HEIGHT = 240  # pixels; small images are drawn enlarged, so that the labels can be read
GAP = 6


def main() -> None:
    """Predict, draw and write."""
    args = parse_args()
    loading.install()
    cfg = Config.fromfile(args.config)
    inferencer = DetInferencer(
        args.config, str(args.checkpoint), device=args.device, show_progress=False
    )
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    visualizer = VISUALIZERS.build(dict(type='DetLocalVisualizer', name='draw_predictions'))
    visualizer.dataset_meta = dataset.metainfo
    indices = np.linspace(0, len(dataset) - 1, min(args.num_images, len(dataset))).astype(int)
    pictures = [
        draw(inferencer, visualizer, dataset.get_data_info(int(i)), args.score_thr) for i in indices
    ]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(args.out), grid(pictures))
    print(f'{len(pictures)} images, ground truth left and predictions right, lie in {args.out}')


def parse_args() -> Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='config with a val_dataloader')
    parser.add_argument(
        'checkpoint', type=Path, help='checkpoint of the config, of training or not'
    )
    parser.add_argument('out', type=Path, help='PNG to write')
    parser.add_argument('--num-images', type=int, default=9, help='how many images')
    parser.add_argument('--score-thr', type=float, default=0.3, help='least score that is drawn')
    parser.add_argument('--device', default='cpu', help='device to predict on')
    return parser.parse_args()


def draw(
    inferencer: DetInferencer, visualizer: DetLocalVisualizer, info: dict, score_thr: float
) -> np.ndarray:
    """Draw one image twice, with its ground truth and with what is predicted (BGR, uint8)."""
    image = cv2.imread(info['img_path'])
    factor = CELL_HEIGHT / image.shape[0]
    (sample,) = inferencer(image, return_datasamples=True)['predictions']
    predictions = sample.pred_instances
    truth = InstanceData(
        bboxes=torch.tensor([x['bbox'] for x in info['instances']]).view(-1, 4) * factor,
        labels=torch.tensor([x['bbox_label'] for x in info['instances']], dtype=torch.long),
    )
    predictions.bboxes = predictions.bboxes * factor
    enlarged = cv2.resize(image, None, fx=factor, fy=factor)
    sample = DetDataSample(gt_instances=truth, pred_instances=predictions)
    visualizer.add_datasample('picture', enlarged[..., ::-1], sample, pred_score_thr=score_thr)
    return visualizer.get_image()[..., ::-1]


def grid(pictures: list[np.ndarray]) -> np.ndarray:
    """Arrange pictures of any widths in rows, on white."""
    height, width = (max(x.shape[axis] for x in pictures) + GAP for axis in (0, 1))
    rows = -(-len(pictures) // COLUMNS)
    canvas = np.full((rows * height, min(COLUMNS, len(pictures)) * width, 3), 255, np.uint8)
    for index, picture in enumerate(pictures):
        top, left = (index // COLUMNS) * height, (index % COLUMNS) * width
        canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return canvas


if __name__ == '__main__':
    with user_errors_last():
        main()
