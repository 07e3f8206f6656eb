"""Random images and objects, so that a training step needs no data."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.model import BaseModel
from mmengine.structures import InstanceData, PixelData
from torch import Tensor

from ..datasets.branches import LABELLED, UNLABELLED
from ..models import SemiDistiller
from ..models.student import count_classes

SMALLEST = 8  # pixels a side of an object


def random_batch(
    model: BaseModel, shape: Sequence[int], batch_size: int, num_objects: int
) -> dict[str, Any]:
    """Make a batch for a model, on its device, as a data loader does; always the same one.

    Args:
        model: A detector or a distiller; the objects have its classes.
        shape: Height and width of the images.
        batch_size: Number of images. For a ``SemiDistiller``, half of them are in the branch without
            labels, rounded down.
        num_objects: Objects in each. Their sides are log-uniform between 8 pixels and the image's.
    """
    generator = torch.Generator().manual_seed(0)
    device = next(model.parameters()).device
    num_classes = count_classes(model) or 1
    images = [
        torch.randint(256, (3, *shape), generator=generator, dtype=torch.uint8)
        for _ in range(batch_size)
    ]
    samples = []
    for index in range(batch_size):
        boxes = random_boxes(num_objects, shape, generator)
        labels = torch.randint(num_classes, (num_objects,), generator=generator)
        samples.append(labelled_sample(index, shape, boxes, labels).to(device))
    batch = dict(inputs=[x.to(device) for x in images], data_samples=samples)
    if isinstance(model, SemiDistiller):
        labelled = batch_size - batch_size // 2
        return {
            key: {LABELLED: items[:labelled], UNLABELLED: items[labelled:]}
            for key, items in batch.items()
        }
    return batch


def random_boxes(num_objects: int, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw boxes (x1, y1, x2, y2) inside images of a height and width, of shape (n, 4)."""
    low, high = [], []
    for length in (shape[1], shape[0]):
        most = math.log(length / SMALLEST)
        sides = SMALLEST * (torch.rand(num_objects, generator=generator) * most).exp()
        low.append(torch.rand(num_objects, generator=generator) * (length - sides))
        high.append(low[-1] + sides)
    return torch.stack([*low, *high], 1)


def labelled_sample(
    index: int, shape: Sequence[int], boxes: Tensor, labels: Tensor
) -> DetDataSample:
    """Make an image's data sample with all that some detector needs, masks and a semantic map too.

    Args:
        index: Index of the image in its batch.
        shape: Height and width of the image.
        boxes: Boxes (x1, y1, x2, y2) of shape (n, 4); each object fills its box.
        labels: Labels of shape (n,).
    """
    height, width = shape
    masks = np.zeros((len(boxes), height, width), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1 : y2 + 1, x1 : x2 + 1] = 1
    sample = DetDataSample(
        metainfo=dict(
            img_id=index,
            img_path=f'random_{index}.jpg',
            img_shape=(height, width),
            ori_shape=(height, width),
            scale_factor=(1.0, 1.0),
            flip=False,
            flip_direction=None,
            border=(0, height, 0, width),  # CenterNet's test pipeline adds it
        )
    )
    sample.gt_instances = InstanceData(
        bboxes=boxes, labels=labels, masks=BitmapMasks(masks, height, width)
    )
    sample.ignored_instances = InstanceData(
        bboxes=boxes.new_zeros(0, 4), labels=labels.new_zeros(0)
    )
    covered = masks.any(0, keepdims=True)
    sample.gt_sem_seg = PixelData(sem_seg=torch.from_numpy(covered).long())
    return sample
