"""Images as the arms of a comparison see them, beside their labels."""

from collections.abc import Sequence

import cv2
import torch
from mmdet.registry import DATASETS, VISUALIZERS
from mmdet.utils import register_all_modules
from mmengine.config import Config

from ..visualization.predictions import (
    draw_objects,
    labelled_objects,
    load_detector,
    predict,
    spread,
)
from .runs import Run

LEAST_SCORE = 0.3  # of what is drawn


def draw_examples(runs: Sequence[Run], split: str, count: int) -> dict[str, dict[str, bytes]]:
    """Draw labels, and the predictions of runs, on images at even distances in the data set.

    Args:
        runs: Runs with checkpoints, of different arms.
        split: Whose images to draw: ``'val'`` or ``'test'``.
        count: How many.

    Returns:
        JPEGs, by the image's name and by caption.
    """
    register_all_modules()
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    configs = {run: Config.fromfile(run.config_file) for run in runs}
    dataset = DATASETS.build(configs[runs[0]][f'{split}_dataloader'].dataset)
    visualizer = VISUALIZERS.build(dict(type='DetLocalVisualizer', name='examples', line_width=2))
    visualizer.dataset_meta = dataset.metainfo
    infos = spread(dataset, count)
    names = [info['img_path'].rpartition('/')[2] for info in infos]
    panels = {name: {} for name in names}
    for run, cfg in configs.items():
        cfg.test_dataloader = cfg[f'{split}_dataloader']
        detector = load_detector(cfg, str(run.checkpoint), device)
        for name, info in zip(names, infos, strict=True):
            panels[name].setdefault('labels', _jpeg(visualizer, info, labelled_objects(info)))
            found = predict(detector, info['img_path'])
            panels[name][run.arm] = _jpeg(visualizer, info, found[found.scores >= LEAST_SCORE])
    return panels


def _jpeg(visualizer, info, objects) -> bytes:
    picture = draw_objects(visualizer, info['img_path'], objects)
    return cv2.imencode('.jpg', picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
