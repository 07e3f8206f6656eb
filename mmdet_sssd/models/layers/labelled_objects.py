from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from mmcv.ops import roi_align
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import get_box_tensor
from mmengine.structures import InstanceData
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...errors import ConfigError

MASK_SIZE = 7  # side of the instance mask in a descriptor

ClassCode = Callable[[Tensor], Tensor]
"""Codes labels of shape (B, N), -1 for no class, as (B, N, E)."""


@dataclass
class LabelledObjects:
    """The ground truth of a batch, padded to the same number of objects N ≥ 1 for each image.

    Attributes:
        boxes: Boxes (x1, y1, x2, y2) in input pixels, clipped to the batch's images (padding
            included), of shape (B, N, 4); zero where padded.
        labels: Class indices of shape (B, N); -1 where padded.
        valid: Which of the N are objects, bool of shape (B, N).
        image_size: Height and width of the batch's images, padding included.
        content_sizes: Height and width of each image without padding.
        soft: Whether regions are the covered share of each pixel, not 0 or 1.
        masks: Per image, the instance masks as a uint8 array of shape (n_b, h, w) on the CPU; None
            if masks are not used.
    """

    boxes: Tensor
    labels: Tensor
    valid: Tensor
    image_size: tuple[int, int]
    content_sizes: list[tuple[int, int]]
    soft: bool
    masks: list[np.ndarray] | None = None
    _finest: dict[str, list[Tensor]] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def from_samples(
        cls,
        batch_inputs: Tensor,
        batch_data_samples: Sequence[DetDataSample],
        use_masks: bool,
        soft: bool,
        dtype: torch.dtype = torch.float32,
    ) -> 'LabelledObjects':
        """Gather the ground truth of a batch.

        Args:
            batch_inputs: Images of shape (B, 3, H, W).
            batch_data_samples: Their B data samples.
            use_masks: Whether to gather instance masks too.
            soft: See the attribute.
            dtype: Floating-point type of boxes, descriptors and regions.

        Raises:
            ConfigError: if the boxes are not axis-aligned, or ``use_masks`` is set and a data sample
                has no masks.
        """
        height, width = batch_inputs.shape[-2:]
        instances = [sample.gt_instances for sample in batch_data_samples]
        boxes = [_clip(_box_tensor(x).to(dtype), height, width) for x in instances]
        return cls(
            boxes=_pad(boxes, 0),
            labels=_pad([x.labels for x in instances], -1),
            valid=_pad([torch.ones_like(x.labels, dtype=torch.bool) for x in instances], False),
            image_size=(height, width),
            content_sizes=[
                tuple(s.metainfo.get('img_shape', (height, width))[:2]) for s in batch_data_samples
            ],
            soft=soft,
            masks=[_mask_array(x) for x in instances] if use_masks else None,
        )

    def descriptors(self, class_code: ClassCode) -> Tensor:
        """Describe each object by box, class and, with masks, shape; boxes and shapes in [-1, 1].

        Args:
            class_code: Codes labels of shape (B, N) as (B, N, E).

        Returns:
            Descriptors of shape (B, N, 4 + E), or (B, N, 4 + E + 49) with masks.
        """
        height, width = self.image_size
        x1, y1, x2, y2 = self.boxes.unbind(-1)
        boxes = torch.stack([x1 / width, y1 / height, x2 / width, y2 / height], -1)
        parts = [2 * boxes - 1, class_code(self.labels)]
        if self.masks is not None:
            crops = [
                _crop_masks(torch.from_numpy(masks), boxes_of_image[: len(masks)])
                for masks, boxes_of_image in zip(self.masks, self.boxes, strict=True)
            ]
            parts.append(2 * _pad(crops, 0) - 1)
        return torch.cat(parts, -1)

    def context_descriptors(self, class_code: ClassCode) -> Tensor:
        """Describe each image's context object, which covers the image and has no class.

        Args:
            class_code: As in :meth:`descriptors`.

        Returns:
            Descriptors of shape (B, 1, k), k as in :meth:`descriptors`.
        """
        height, width = self.image_size
        boxes = self.boxes.new_tensor(
            [-1, -1, 2 * (width - 1) / width - 1, 2 * (height - 1) / height - 1]
        )
        parts = [
            boxes.expand(len(self.boxes), 1, 4),
            class_code(torch.full_like(self.labels[:, :1], -1)),
        ]
        if self.masks is not None:
            parts.append(self.boxes.new_ones(len(self.boxes), 1, MASK_SIZE**2))
        return torch.cat(parts, -1)

    def regions(self, level_size: tuple[int, int]) -> Tensor:
        """Compute each object's region on a feature level.

        Args:
            level_size: Height h and width w of the level.

        Returns:
            Regions of shape (B, N, h, w): the share of each pixel that the object covers, in [0, 1],
            or with ``soft=False`` 0 or 1; zero where padded.
        """
        extents = self.extents(level_size)
        if extents is None:
            return self._resize_masks('objects', self.masks, level_size)
        rows, columns = extents
        return rows.unsqueeze(-1) * columns.unsqueeze(-2)

    def extents(self, level_size: tuple[int, int]) -> tuple[Tensor, Tensor] | None:
        """Compute each object's rows and columns on a feature level.

        Args:
            level_size: Height h and width w of the level.

        Returns:
            Rows of shape (B, N, h) and columns of shape (B, N, w), in [0, 1], whose products are the
            regions. None with masks, whose regions are not such products.
        """
        if self.masks is not None:
            return None
        rows, columns = (
            self._extent(self.boxes[..., axis], self.boxes[..., axis + 2], level_size, axis)
            for axis in (1, 0)
        )
        return rows, columns

    def context_regions(self, level_size: tuple[int, int]) -> Tensor:
        """Compute the context objects' regions on a feature level.

        With boxes the whole map, with masks the image without its padding.

        Args:
            level_size: Height h and width w of the level.

        Returns:
            Regions of shape (B, 1, h, w), otherwise as in :meth:`regions`.
        """
        if self.masks is None:
            return self.boxes.new_ones(len(self.boxes), 1, *level_size)
        content = [np.ones((1, *size), np.uint8) for size in self.content_sizes]
        return self._resize_masks('context', content, level_size)

    def _extent(self, low: Tensor, high: Tensor, level_size: tuple[int, int], axis: int) -> Tensor:
        """Compute the objects' extents along an axis (0: x, 1: y) of a level, (B, N, pixels)."""
        num_pixels, length = level_size[1 - axis], self.image_size[1 - axis]
        extent = _covered_pixels if self.soft else _pixels_inside
        pixels = torch.arange(num_pixels, device=low.device, dtype=low.dtype)
        return extent(*(x.unsqueeze(-1) * (num_pixels / length) for x in (low, high)), pixels)

    def _resize_masks(
        self, kind: str, masks: list[np.ndarray], level_size: tuple[int, int]
    ) -> Tensor:
        """Resize the images' masks of shape (n_b, h', w') to a level, as (B, N, h, w).

        Soft masks are averaged over the pixels of the finest level seen so far; that result is then
        averaged for coarser levels.
        """
        if not self.soft:
            return _pad([self._sample_masks(x, level_size) for x in masks], 0)
        if kind not in self._finest or self._finest[kind][0].shape[1:] < level_size:
            self._finest[kind] = [self._pool_masks(x, level_size) for x in masks]
        return _pad([F.adaptive_avg_pool2d(x, level_size) for x in self._finest[kind]], 0)

    def _pool_masks(self, masks: np.ndarray, level_size: tuple[int, int]) -> Tensor:
        """Average an image's n masks over each pixel of a level, as (n, h, w)."""
        height, width = self.image_size
        padded = np.zeros((len(masks), height, width), np.uint8)
        padded[:, : masks.shape[1], : masks.shape[2]] = masks
        num_rows = level_size[0] if height % level_size[0] == 0 else height
        blocks = padded.reshape(len(masks), num_rows, height // num_rows, width)
        sums = torch.from_numpy(blocks.sum(2, dtype=np.uint16)).to(self.boxes)
        return F.adaptive_avg_pool2d(sums / blocks.shape[2], level_size)

    def _sample_masks(self, masks: np.ndarray, level_size: tuple[int, int]) -> Tensor:
        """Resize an image's n masks to a level by nearest neighbour, as (n, h, w)."""
        region = np.zeros((len(masks), *level_size), np.uint8)
        rows, columns = (
            np.arange(size) * length // size
            for size, length in zip(level_size, self.image_size, strict=True)
        )
        height, width = masks.shape[1:]
        seen = masks[:, rows[rows < height]][:, :, columns[columns < width]]
        region[:, : seen.shape[1], : seen.shape[2]] = seen
        return torch.from_numpy(region).to(self.boxes)


def _pad(per_image: list[Tensor], value: float) -> Tensor:
    """Stack tensors of shape (n_b, ...) to (B, N, ...) with N the largest n_b, or 1."""
    padded = pad_sequence(per_image, batch_first=True, padding_value=value)
    if padded.shape[1]:
        return padded
    return padded.new_full((len(padded), 1, *padded.shape[2:]), value)


def _box_tensor(instances: InstanceData) -> Tensor:
    """Read an image's boxes (x1, y1, x2, y2), (n, 4)."""
    boxes = get_box_tensor(instances.bboxes)
    if boxes.ndim != 2 or boxes.shape[-1] != 4:
        raise ConfigError(
            f'the training data has boxes of shape {tuple(boxes.shape)}; accepted: axis-aligned boxes '
            '(x1, y1, x2, y2), of shape (n, 4), not rotated boxes or quadrilaterals'
        )
    return boxes


def _clip(boxes: Tensor, height: int, width: int) -> Tensor:
    """Clip boxes to the pixels of an image; NaN coordinates become 0."""
    x1, y1, x2, y2 = torch.nan_to_num(boxes).unbind(-1)
    x1, x2 = x1.clamp(0, width - 1), x2.clamp(0, width - 1)
    y1, y2 = y1.clamp(0, height - 1), y2.clamp(0, height - 1)
    return torch.stack([x1, y1, x2, y2], -1)


def _covered_pixels(low: Tensor, high: Tensor, pixels: Tensor) -> Tensor:
    """Compute the share of each pixel [j, j + 1) between ``low`` and ``high``, in level pixels."""
    return (high.minimum(pixels + 1) - low.maximum(pixels)).clamp(min=0)


def _pixels_inside(low: Tensor, high: Tensor, pixels: Tensor) -> Tensor:
    """Mark each pixel j between ``low`` and ``high`` by 1, if these differ; LGD's rule."""
    size, centre = high - low, (high + low) / 2
    return (((pixels - centre).abs() <= size / 2) & (size > 0)).to(pixels)


def _mask_array(instances: InstanceData) -> np.ndarray:
    """Read an image's instance masks as a uint8 array of shape (n, h, w)."""
    masks = instances.get('masks')
    if masks is None:
        raise ConfigError(
            'is True, but the training data has no instance masks; load them '
            "(dict(type='LoadAnnotations', with_bbox=True, with_mask=True) in the training "
            'pipeline) or leave this setting out',
            'use_masks',
        )
    if isinstance(masks, Tensor):
        return masks.cpu().numpy().astype(np.uint8)
    return masks.to_ndarray().astype(np.uint8, copy=False)


def _crop_masks(masks: Tensor, boxes: Tensor) -> Tensor:
    """Crop each of n masks to its box and resize it to a flat binary vector of shape (n, 49)."""
    if not len(boxes):  # roi_align fails without boxes
        return boxes.new_zeros(0, MASK_SIZE**2)
    masks = masks.to(boxes.device).to(boxes.dtype)
    indices = torch.arange(len(boxes), device=boxes.device, dtype=boxes.dtype)
    corners = boxes[:, :2], boxes[:, 2:].maximum(boxes[:, :2])  # roi_align refuses reversed boxes
    rois = torch.cat([indices[:, None], *corners], 1)
    crops = roi_align(masks[:, None], rois, (MASK_SIZE, MASK_SIZE), 1.0, 0, 'avg', True)
    return (crops.flatten(1) >= 0.5).to(boxes)
