"""Images on which the arms of a comparison differ most, with labels and predictions."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from mmdet.apis import inference_detector, init_detector
from mmdet.registry import DATASETS, VISUALIZERS
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.structures import InstanceData
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ...checkpoints import loading
from ..visualization.feature_picture import draw_instances
from .cells import Cell
from .report import Example

LOOKED_AT = 100  # images at most: a large detector takes seconds for each on a CPU
LEAST_SCORE = 0.3  # of what is drawn


def find_examples(cells: Sequence[Cell], split: str, count: int) -> list[Example]:
    """Draw the images whose AP differs most between the first cell and the mean of the others.

    One half are those where the others lead most, the other half those where the first one does.

    Args:
        cells: Cells with checkpoints, of different arms.
        split: ``'val'`` or ``'test'``: whose images to choose from; 100 of them are looked at, evenly
            spaced.
        count: How many images.
    """
    loading.install()
    register_all_modules()
    configs = {cell: Config.fromfile(cell.config_file) for cell in cells}
    dataset = DATASETS.build(configs[cells[0]][f'{split}_dataloader'].dataset)
    indices = np.linspace(0, len(dataset) - 1, min(LOOKED_AT, len(dataset))).astype(int)
    infos = [info for i in indices if (info := dataset.get_data_info(int(i)))['instances']]
    found = {cell.arm: _predict(cell, cfg, split, infos) for cell, cfg in configs.items()}
    aps = {arm: image_aps(infos, x) for arm, x in found.items()}
    first, *others = aps.values()
    order = np.argsort(np.mean(others, 0) - first, kind='stable')
    visualizer = VISUALIZERS.build(dict(type='DetLocalVisualizer', name='examples', line_width=2))
    visualizer.dataset_meta = dataset.metainfo
    examples = []
    for index in _ends(order, count):
        info = infos[index]
        panels = {'labels': _draw(visualizer, info, _labels(info))}
        for arm, predictions in found.items():
            shown = predictions[index][predictions[index].scores >= LEAST_SCORE]
            panels[f'{arm}: AP {100 * aps[arm][index]:.0f}'] = _draw(visualizer, info, shown)
        examples.append(Example(info['img_path'].rpartition('/')[2], panels))
    return examples


def _ends(order: np.ndarray, count: int) -> list[int]:
    """Take the last and the first of an order, in turn."""
    zigzag = [index for pair in zip(order[::-1], order, strict=True) for index in pair]
    return list(dict.fromkeys(zigzag))[:count]


def _predict(cell: Cell, cfg: Config, split: str, infos: Sequence[dict]) -> list[InstanceData]:
    """Predict boxes on images, in their pixels, with the last checkpoint of a cell."""
    cfg.test_dataloader = cfg[f'{split}_dataloader']
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    detector = init_detector(cfg, str(cell.checkpoint), device=device, cfg_options={})
    predictions = []
    for info in infos:  # one by one: masks of many images would fill the memory
        x = inference_detector(detector, info['img_path']).pred_instances.cpu()
        predictions.append(InstanceData(bboxes=x.bboxes, labels=x.labels, scores=x.scores))
    return predictions


def image_aps(infos: Sequence[Mapping[str, Any]], found: Sequence[InstanceData]) -> list[float]:
    """Give the COCO AP of each image by itself, in [0, 1].

    Args:
        infos: What the data set knows of the images, with at least one instance each.
        found: Predictions with ``bboxes`` (x1, y1, x2, y2), ``scores`` and ``labels``.
    """
    labels = [(i, x) for i, info in enumerate(infos) for x in info['instances']]
    boxes = [_annotation(i, x['bbox'], x['bbox_label']) for i, x in labels]
    for number, (annotation, (_, x)) in enumerate(zip(boxes, labels, strict=True), 1):
        annotation |= {'id': number, 'iscrowd': int(x.get('ignore_flag', 0))}
    predictions = [
        _annotation(i, box, label) | {'score': score}
        for i, x in enumerate(found)
        for box, label, score in zip(
            *(x[k].tolist() for k in ('bboxes', 'labels', 'scores')), strict=True
        )
    ]
    if not predictions:
        return [0.0] * len(infos)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports on each step
        truth = COCO()
        truth.dataset = {
            'images': [{'id': i} for i in range(len(infos))],
            'annotations': boxes,
            'categories': [
                {'id': i} for i in sorted({x['category_id'] for x in boxes + predictions})
            ],
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(predictions), 'bbox')
        return [_ap(evaluation, i) for i in range(len(infos))]


def _annotation(image: int, box: Sequence[float], label: int) -> dict[str, Any]:
    x1, y1, x2, y2 = box
    size = (x2 - x1, y2 - y1)
    return {
        'image_id': image,
        'category_id': label,
        'bbox': [x1, y1, *size],
        'area': size[0] * size[1],
    }


def _ap(evaluation: COCOeval, image: int) -> float:
    evaluation.params.imgIds = [image]
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval['precision'][..., 0, -1]  # objects of any size, 100 predictions
    known = precision[precision > -1]
    return float(known.mean()) if known.size else 0.0


def _labels(info: Mapping[str, Any]) -> InstanceData:
    return InstanceData(
        bboxes=torch.tensor([x['bbox'] for x in info['instances']]),
        labels=torch.tensor([x['bbox_label'] for x in info['instances']]),
    )


def _draw(visualizer: Any, info: Mapping[str, Any], instances: InstanceData) -> bytes:
    """Draw boxes on an image, as JPEG."""
    size = {'img_path': info['img_path'], 'ori_shape': (info['height'], info['width'])}
    picture = draw_instances(visualizer, DetDataSample(metainfo=size), instances)
    return cv2.imencode('.jpg', picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
