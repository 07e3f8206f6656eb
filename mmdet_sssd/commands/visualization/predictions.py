"""Draws ground truth and predictions of validation images side by side."""

from pathlib import Path

import cv2
import numpy as np
import torch
from mmdet.apis import inference_detector, init_detector
from mmdet.models import BaseDetector
from mmdet.registry import DATASETS, VISUALIZERS
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from mmengine.structures import InstanceData
from rich.progress import track

from ...checkpoints import loading
from ...errors import ConfigError

COLUMNS = 3
CELL_HEIGHT = 240  # pixels; small images are enlarged, so that their labels are legible
GAP = 6


def draw_predictions(
    cfg: Config,
    checkpoint: str,
    num_images: int,
    out: Path = Path('visualized'),
    score_thr: float = 0.3,
    device: str = 'cpu',
) -> Path:
    """Draw ground truth and predictions of some validation images into one picture.

    Args:
        cfg: The whole config of any detector, with a ``val_dataloader``.
        checkpoint: A checkpoint of it.
        num_images: Number of images.
        out: Folder to write to.
        score_thr: Lowest score to draw.
        device: Device to predict on.

    Returns:
        The picture's file.

    Raises:
        ConfigError: if the config has no validation data.
    """
    loading.install()
    if not cfg.get('val_dataloader'):
        raise ConfigError(
            f'{cfg.filename} has no val_dataloader to take images from; name an IMAGE'
        )
    # not mmdet's DetInferencer, which warns of a registry that mmdet lacks
    detector = init_detector(cfg, str(checkpoint), device=device, cfg_options={})
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    visualizer = VISUALIZERS.build(dict(type='DetLocalVisualizer', name='draw_predictions'))
    visualizer.dataset_meta = dataset.metainfo
    indices = np.linspace(0, len(dataset) - 1, min(num_images, len(dataset))).astype(int)
    pictures = [
        draw(detector, visualizer, dataset.get_data_info(int(i)), score_thr)
        for i in track(indices, 'drawing')
    ]
    out.mkdir(parents=True, exist_ok=True)
    path = out / 'predictions.png'
    cv2.imwrite(str(path), grid(pictures))
    print(
        f'{path} shows {len(pictures)} images, ground truth on the left, predictions on the right'
    )
    return path


def draw(
    detector: BaseDetector, visualizer: DetLocalVisualizer, info: dict, score_thr: float
) -> np.ndarray:
    """Draw one image twice, with ground truth and with predictions (BGR, uint8)."""
    image = cv2.imread(info['img_path'])
    factor = CELL_HEIGHT / image.shape[0]
    predictions = inference_detector(detector, image).pred_instances.cpu()
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
