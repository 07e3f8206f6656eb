"""The ground truth of a batch as the implicit teacher sees it: descriptors and regions of objects."""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from mmcv.ops import roi_align
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import get_box_tensor
from mmengine.structures import InstanceData
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..errors import ConfigError

MASK_SIZE = 7  # side of the instance mask in a descriptor


class Regions(NamedTuple):
    """The objects' regions on a feature level of h×w pixels.

    Attributes:
        maps: Each object's region, in [0, 1], of shape (B, 1 + N, h, w).
        rows: Boxes' regions are products of rows and columns. These are the rows, shifted by -1, 0
            and 1 pixel, of shape (B, 1 + N, 3, h); None for masks.
        columns: Likewise the columns, of shape (B, 1 + N, 3, w).
    """

    maps: Tensor
    rows: Tensor | None = None
    columns: Tensor | None = None


class LabelledObjects:
    """The ground truth of a batch, padded to the same number of objects N ≥ 1 for each image.

    The first of an image's 1 + N objects is the image itself, without a class: LGD's context object.

    Args:
        batch_inputs: Images of shape (B, 3, H, W); only their size is used.
        batch_data_samples: Their B data samples.
        use_masks: Whether descriptors and regions are those of the instance masks.
        soft: Whether regions are the covered share of each pixel, not 0 or 1.
        dtype: Floating-point type of boxes, descriptors and regions.

    Attributes:
        boxes: Boxes (x1, y1, x2, y2) in input pixels, clipped to the batch's images (padding
            included), of shape (B, 1 + N, 4); zero where padded.
        labels: Class indices of shape (B, 1 + N); -1 for the image and where padded.
        valid: Which of them are objects, the image included, bool of shape (B, 1 + N).
        masks: Per image, the instance masks as a uint8 array of shape (n_b, h, w) on the CPU; None
            without ``use_masks``.

    Raises:
        ConfigError: if the boxes are not axis-aligned, or ``use_masks`` is set and a data sample has
            no masks.
    """

    def __init__(
        self,
        batch_inputs: Tensor,
        batch_data_samples: Sequence[DetDataSample],
        use_masks: bool,
        soft: bool,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.image_size = height, width = tuple(batch_inputs.shape[-2:])
        self.soft = soft
        instances = [sample.gt_instances for sample in batch_data_samples]
        boxes = _pad([_box_tensor(x) for x in instances], 0).to(dtype).nan_to_num_()
        self.boxes = F.pad(boxes, (0, 0, 1, 0), value=max(height, width))
        self.boxes[:, 0, :2] = 0
        self.boxes[..., 0::2].clamp_(0, width - 1)
        self.boxes[..., 1::2].clamp_(0, height - 1)
        self.labels = F.pad(_pad([x.labels for x in instances], -1), (1, 0), value=-1)
        self.valid = self.labels >= 0
        self.valid[:, 0] = True
        self.masks = [_mask_array(x) for x in instances] if use_masks else None
        self._content_sizes = [x.get('img_shape', self.image_size)[:2] for x in batch_data_samples]

    def descriptors(self, class_code: Callable[[Tensor], Tensor]) -> Tensor:
        """Describe each object by box, class and, with masks, shape; boxes and shapes in [-1, 1].

        Args:
            class_code: Codes labels of shape (B, 1 + N), -1 for no class, as (B, 1 + N, E).

        Returns:
            Descriptors of shape (B, 1 + N, 4 + E), or (B, 1 + N, 4 + E + 49) with masks.
        """
        height, width = self.image_size
        half_size = torch.tensor([width / 2, height / 2] * 2).to(self.boxes, non_blocking=True)
        parts = [self.boxes / half_size - 1, class_code(self.labels)]
        if self.masks is not None:
            crops = [
                _crop_masks(torch.from_numpy(masks), boxes[1 : 1 + len(masks)])
                for masks, boxes in zip(self.masks, self.boxes, strict=True)
            ]
            parts.append(F.pad(2 * _pad(crops, 0) - 1, (0, 0, 1, 0), value=1))
        return torch.cat(parts, -1)

    def regions(self, level_sizes: Sequence[tuple[int, int]]) -> list[Regions]:
        """Compute each object's region on each feature level; zero where padded.

        The image's own region is the whole map with boxes, the image without its padding with masks.

        Args:
            level_sizes: Height h and width w of each level.
        """
        if self.masks is not None:
            return [Regions(x) for x in self._mask_maps(level_sizes)]
        sides = self._sides(level_sizes)
        pairs = zip(sides[: len(level_sizes)], sides[len(level_sizes) :], strict=True)
        return [
            Regions(rows[:, :, 1, :, None] * columns[:, :, 1, None], rows, columns)
            for rows, columns in pairs
        ]

    def _sides(self, level_sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Compute the objects' shifted rows on each level, then their columns, all of them at once."""
        counts = [n for axis in zip(*level_sizes, strict=True) for n in axis]
        lengths = [length for length in self.image_size for _ in level_sizes]
        scales = [np.full(n + 2, n / length) for n, length in zip(counts, lengths, strict=True)]
        pixels = [np.arange(-1.0, n + 1) for n in counts]
        constants = np.stack([np.concatenate(scales), np.concatenate(pixels)])
        scale, pixel = torch.from_numpy(constants).to(self.boxes, non_blocking=True)
        padded = [n + 2 for n in counts]
        num_rows = sum(padded[: len(level_sizes)])
        low, high = (
            torch.cat(
                [
                    self.boxes[..., y : y + 1].expand(-1, -1, num_rows),
                    self.boxes[..., y - 1 : y].expand(-1, -1, len(pixel) - num_rows),
                ],
                -1,
            )
            for y in (1, 3)
        )
        covered = _covered_pixels if self.soft else _pixels_inside
        sides = covered(low * scale, high * scale, pixel)
        sides[:, 0] = 1
        shifted = sides.unfold(
            -1, len(pixel) - 2, 1
        ).contiguous()  # each level has one border pixel per side
        starts = accumulate(padded, initial=0)
        return [shifted[..., start : start + n] for start, n in zip(starts, counts, strict=False)]

    def _mask_maps(self, level_sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Resize masks to each level.

        Soft ones are averaged over each pixel of the finest level, and that result over those of each
        level; others are the nearest pixels.
        """
        padded = []
        for masks, (height, width) in zip(self.masks, self._content_sizes, strict=True):
            whole = np.zeros((1 + len(masks), *self.image_size), np.uint8)
            whole[0, :height, :width] = 1
            whole[1:, : masks.shape[1], : masks.shape[2]] = masks
            padded.append(whole)
        if not self.soft:
            return [_pad([self._nearest(x, size) for x in padded], 0, 2) for size in level_sizes]
        finest = max(level_sizes)
        pooled = _pad([self._pooled(x, finest) for x in padded], 0, 2)
        return [F.adaptive_avg_pool2d(pooled, size) for size in level_sizes]

    def _nearest(self, masks: np.ndarray, size: tuple[int, int]) -> Tensor:
        """Resize an image's masks of shape (n, H, W) by nearest neighbour."""
        rows, columns = (
            np.arange(n) * length // n for n, length in zip(size, self.image_size, strict=True)
        )
        return torch.from_numpy(masks[:, rows][:, :, columns]).to(self.boxes, non_blocking=True)

    def _pooled(self, masks: np.ndarray, size: tuple[int, int]) -> Tensor:
        """Average an image's masks of shape (n, H, W) over each of h×w pixels, rows first."""
        height, width = self.image_size
        num_rows = size[0] if height % size[0] == 0 else height
        blocks = masks.reshape(len(masks), num_rows, height // num_rows, width)
        sums = torch.from_numpy(blocks.sum(2, dtype=np.uint16)).to(self.boxes, non_blocking=True)
        return F.adaptive_avg_pool2d(sums / blocks.shape[2], size)


def _pad(per_image: list[Tensor], value: float, least: int = 1) -> Tensor:
    """Stack tensors of shape (n_b, ...) to (B, n, ...) with n the largest n_b, or ``least``."""
    padded = pad_sequence(per_image, batch_first=True, padding_value=value)
    missing = least - padded.shape[1]
    if missing <= 0:
        return padded
    return F.pad(padded, (0, 0) * (padded.ndim - 2) + (0, missing), value=value)


def _box_tensor(instances: InstanceData) -> Tensor:
    """Read an image's boxes (x1, y1, x2, y2), (n, 4)."""
    boxes = get_box_tensor(instances.bboxes)
    if boxes.ndim != 2 or boxes.shape[-1] != 4:
        raise ConfigError(
            f'the training data has boxes of shape {tuple(boxes.shape)}; accepted: axis-aligned boxes '
            '(x1, y1, x2, y2), of shape (n, 4), not rotated boxes or quadrilaterals'
        )
    return boxes


def _covered_pixels(low: Tensor, high: Tensor, pixels: Tensor) -> Tensor:
    """Compute the share of each pixel [j, j + 1) between ``low`` and ``high``, in level pixels."""
    return (high.minimum(pixels + 1) - low.maximum(pixels)).clamp_(min=0)


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
    masks = masks.to(boxes.device, non_blocking=True).to(boxes.dtype)
    indices = torch.arange(len(boxes), device=boxes.device, dtype=boxes.dtype)
    corners = boxes[:, :2], boxes[:, 2:].maximum(boxes[:, :2])  # roi_align refuses reversed boxes
    rois = torch.cat([indices[:, None], *corners], 1)
    crops = roi_align(masks[:, None], rois, (MASK_SIZE, MASK_SIZE), 1.0, 0, 'avg', True)
    return (crops.flatten(1) >= 0.5).to(boxes)
