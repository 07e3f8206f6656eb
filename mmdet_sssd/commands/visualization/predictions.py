"""Draws ground truth and predictions of validation images side by side."""

from pathlib import Path

import mmcv
import numpy as np
import torch
from matplotlib.figure import Figure
from mmdet.apis import inference_detector, init_detector
from mmdet.models import BaseDetector
from mmdet.registry import DATASETS, VISUALIZERS
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.structures import InstanceData
from rich.progress import track

from ...errors import ConfigError

COLUMNS = 3
WIDTH = 480  # pixels of a drawn image; small ones are enlarged, so that their labels are legible
DPI = 150


def draw_predictions(
    cfg: Config,
    checkpoint: str,
    num_images: int,
    out: Path = Path('visualized'),
    score_thr: float = 0.3,
    device: str = 'cpu',
) -> Path:
    """Draw ground truth and predictions of some validation images into one picture.

    Returns:
        The picture's file.

    Raises:
        ConfigError: if the config has no validation data.
    """
    if not cfg.get('val_dataloader'):
        raise ConfigError(
            f'{cfg.filename} has no val_dataloader to take images from; name an IMAGE'
        )
    detector = load_detector(cfg, checkpoint, device)
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    visualizer = VISUALIZERS.build(dict(type='DetLocalVisualizer', name='draw_predictions'))
    visualizer.dataset_meta = dataset.metainfo
    infos = spread(dataset, num_images)
    columns = min(COLUMNS, len(infos))
    rows = -(-len(infos) // columns)
    figure = Figure((columns * 6.4, rows * 3), dpi=DPI, layout='constrained')
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis('off')
    for axes, info in zip(grid, track(infos, 'drawing'), strict=False):
        found = predict(detector, info['img_path'])
        shown = (labelled_objects(info), found[found.scores >= score_thr])
        pictures = [draw_objects(visualizer, info['img_path'], objects) for objects in shown]
        axes.imshow(np.concatenate(pictures, 1))
    out.mkdir(parents=True, exist_ok=True)
    path = out / 'predictions.png'
    figure.savefig(path)
    print(f'{path} shows {len(infos)} images, ground truth on the left, predictions on the right')
    return path


def load_detector(cfg: Config, checkpoint: str, device: str) -> BaseDetector:
    """Build a config's detector, or distiller, with the weights of a checkpoint."""
    # not mmdet's DetInferencer, which warns of a registry that mmdet lacks
    return init_detector(cfg, checkpoint, device=device, cfg_options={})


def spread(dataset: BaseDataset, count: int) -> list[dict]:
    """Read what a data set knows of some of its images, at even distances."""
    indices = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int)
    return [dataset.get_data_info(int(index)) for index in indices]


def predict(detector: BaseDetector, image: str) -> InstanceData:
    """Predict boxes, labels and scores for an image file, in its pixels."""
    found = inference_detector(detector, image).pred_instances.cpu()
    return InstanceData(bboxes=found.bboxes, labels=found.labels, scores=found.scores)


def labelled_objects(info: dict) -> InstanceData:
    """Collect boxes and labels from what a data set knows of an image."""
    instances = info['instances']
    return InstanceData(
        bboxes=torch.tensor([x['bbox'] for x in instances]).view(-1, 4),
        labels=torch.tensor([x['bbox_label'] for x in instances], dtype=torch.long),
    )


def draw_objects(
    visualizer: DetLocalVisualizer, image: str, objects: InstanceData, width: int = WIDTH
) -> np.ndarray:
    """Draw objects on an image file, as an array (height, ``width``, RGB).

    Args:
        visualizer: Draws.
        image: Path of the image.
        objects: Labels, boxes in pixels of the image, and perhaps scores.
        width: Width of the result in pixels.
    """
    picture = mmcv.imread(image, channel_order='rgb')
    factor = width / picture.shape[1]
    picture = mmcv.imresize(picture, (width, round(picture.shape[0] * factor)))
    enlarged = InstanceData(labels=objects.labels, bboxes=objects.bboxes * factor)
    if 'scores' in objects:
        enlarged.scores = objects.scores
    sample = DetDataSample(gt_instances=enlarged)
    visualizer.add_datasample('image', picture, sample, draw_pred=False)
    return visualizer.get_image()
