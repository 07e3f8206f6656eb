"""Batches of random images and objects, so that nothing has to be loaded to train a step."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.model import BaseModel
from mmengine.structures import InstanceData
from torch import Tensor

from ...models import Distiller
from ...models.student import count_classes

SMALLEST = 8  # pixels a side of an object


def made_up_batch(
    model: BaseModel, shape: Sequence[int], batch_size: int, num_objects: int
) -> dict[str, list]:
    """Make a batch for a model, on its device, as a data loader gives it; always the same one.

    Args:
        model: A detector or a distiller; objects have its classes.
        shape: Height and width of the images.
        batch_size: How many there are.
        num_objects: Objects in each. Their sides are log-uniform between 8 pixels and the image's.
    """
    generator = torch.Generator().manual_seed(0)
    device = next(model.parameters()).device
    num_classes = (
        model.count_classes() if isinstance(model, Distiller) else count_classes(model)
    ) or 1
    inputs = [
        torch.randint(256, (3, *shape), generator=generator, dtype=torch.uint8)
        for _ in range(batch_size)
    ]
    samples = []
    for index in range(batch_size):
        sample = DetDataSample(metainfo=_metainfo(index, shape))
        boxes = random_boxes(num_objects, shape, generator)
        labels = torch.randint(num_classes, (num_objects,), generator=generator)
        sample.gt_instances = InstanceData(
            bboxes=boxes.to(device), labels=labels.to(device), masks=_full_masks(boxes, shape)
        )
        samples.append(sample)
    return dict(inputs=[x.to(device) for x in inputs], data_samples=samples)


def random_boxes(
    num_objects: int, shape: Sequence[int], generator: torch.Generator | None = None
) -> Tensor:
    """Draw boxes (x1, y1, x2, y2) inside images of a height and width, of shape (n, 4)."""
    low, high = [], []
    for length in (shape[1], shape[0]):
        most = math.log(length / SMALLEST)
        sides = SMALLEST * (torch.rand(num_objects, generator=generator) * most).exp()
        low.append(torch.rand(num_objects, generator=generator) * (length - sides))
        high.append(low[-1] + sides)
    return torch.stack([*low, *high], 1)


def _full_masks(boxes: Tensor, shape: Sequence[int]) -> BitmapMasks:
    """Make the masks of objects that fill their boxes, for models that look at masks."""
    masks = np.zeros((len(boxes), *shape), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1 : y2 + 1, x1 : x2 + 1] = 1
    return BitmapMasks(masks, *shape)


def _metainfo(index: int, shape: Sequence[int]) -> dict:
    return dict(
        img_id=index,
        img_path=f'made_up_{index}.jpg',
        img_shape=tuple(shape),
        ori_shape=tuple(shape),
        scale_factor=(1.0, 1.0),
        flip=False,
    )
