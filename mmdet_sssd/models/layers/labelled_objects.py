from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
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
        content_sizes: Height and width of each image without the padding.
        soft: Whether a region has the share of each pixel that is covered; otherwise 0 or 1.
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
    _mask_sums: list['_MaskSums'] | None = field(default=None, init=False, repr=False)

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
            use_masks: Whether to take the instance masks too.
            soft: See the attribute.
            dtype: Floating-point type of boxes, descriptors and regions.

        Raises:
            ConfigError: if the boxes are not axis-aligned, or if ``use_masks`` and a data sample has
                no masks.
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
        """Describe each image's context object: as large as the image and of no class.

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
        """Tell which pixels of a feature level belong to each object.

        Args:
            level_size: Height h and width w of the level.

        Returns:
            Regions in [0, 1] of shape (B, N, h, w): the share of a pixel that the object covers, or
            with ``soft=False`` 0 or 1; zero where padded.
        """
        if self.masks is None:
            rows, columns = (
                self._extent(self.boxes[..., axis], self.boxes[..., axis + 2], level_size, axis)
                for axis in (1, 0)
            )
            return rows.unsqueeze(-1) * columns.unsqueeze(-2)
        if not self.soft:
            return _pad([self._sample_masks(masks, level_size) for masks in self.masks], 0)
        if self._mask_sums is None:
            self._mask_sums = [_MaskSums(masks, self.image_size) for masks in self.masks]
        shares = [torch.from_numpy(sums.shares(level_size)) for sums in self._mask_sums]
        return _pad(shares, 0).to(self.boxes)

    def context_regions(self, level_size: tuple[int, int]) -> Tensor:
        """Tell which pixels of a feature level belong to the images' context objects.

        With boxes that is the whole map, with masks what the image covers without its padding.

        Args:
            level_size: Height h and width w of the level.

        Returns:
            Regions of shape (B, 1, h, w), otherwise as in :meth:`regions`.
        """
        if self.masks is None:
            return self.boxes.new_ones(len(self.boxes), 1, *level_size)
        regions = [self._content(size, level_size) for size in self.content_sizes]
        return torch.stack(regions).to(self.boxes).unsqueeze(1)

    def _extent(self, low: Tensor, high: Tensor, level_size: tuple[int, int], axis: int) -> Tensor:
        """Where objects lie along an axis (0: x, 1: y) of a level, of shape (B, N, pixels)."""
        num_pixels, length = level_size[1 - axis], self.image_size[1 - axis]
        extent = _covered_pixels if self.soft else _pixels_inside
        pixels = torch.arange(num_pixels, device=low.device, dtype=low.dtype)
        return extent(*(x.unsqueeze(-1) * (num_pixels / length) for x in (low, high)), pixels)

    def _content(self, content_size: tuple[int, int], level_size: tuple[int, int]) -> Tensor:
        """Where an image without its padding lies on a level, (h, w), as its mask would be resized."""
        rows, columns = (
            (np.minimum(ends, content) - starts).clip(0) / (ends - starts)
            if self.soft
            else starts < content
            for content, (starts, ends) in zip(
                content_size, _windows(self.image_size, level_size), strict=True
            )
        )
        return torch.from_numpy(np.outer(rows, columns))

    def _sample_masks(self, masks: np.ndarray, level_size: tuple[int, int]) -> Tensor:
        """Resize n masks of an image to a level by nearest neighbour, as (n, h, w)."""
        region = np.zeros((len(masks), *level_size), np.uint8)
        rows, columns = (
            np.arange(size) * length // size
            for size, length in zip(level_size, self.image_size, strict=True)
        )
        height, width = masks.shape[1:]
        seen = masks[:, rows[rows < height]][:, :, columns[columns < width]]
        region[:, : seen.shape[1], : seen.shape[2]] = seen
        return torch.from_numpy(region).to(self.boxes)


class _MaskSums:
    """Summed-area tables of an image's masks, for their averages over the pixels of any level.

    The masks are summed once over the cells between the edges of the level's pixels; a level all of
    whose edges are among those of earlier ones costs next to nothing.

    Args:
        masks: Masks as a uint8 array of shape (n, h', w').
        image_size: Height and width of the image with its padding, where the masks are zero.
    """

    def __init__(self, masks: np.ndarray, image_size: tuple[int, int]) -> None:
        self.masks = masks
        self.image_size = image_size
        self.edges = [np.array([0, size]) for size in masks.shape[1:]]
        self.tables: np.ndarray | None = None

    def shares(self, level_size: tuple[int, int]) -> np.ndarray:
        """Average each mask over each pixel of a level, that is, the whole image pixels it touches.

        Args:
            level_size: Height h and width w of the level.

        Returns:
            Averages of shape (n, h, w), in float64.
        """
        windows = _windows(self.image_size, level_size)
        limits = [
            tuple(ends.clip(max=size) for ends in window)
            for window, size in zip(windows, self.masks.shape[1:], strict=True)
        ]
        self._refine(limits)
        (top, bottom), (left, right) = (
            tuple(np.searchsorted(edges, side) for side in limit)
            for edges, limit in zip(self.edges, limits, strict=True)
        )
        columns = self.tables[right] - self.tables[left]
        sums = columns[:, bottom] - columns[:, top]
        areas = np.outer(*(ends - starts for starts, ends in reversed(windows)))
        return (sums / areas[:, :, None]).transpose(2, 1, 0)

    def _refine(self, limits: list[tuple[np.ndarray, np.ndarray]]) -> None:
        """Make the tables, (column edges, row edges, n), anew if they lack an edge."""
        edges = [
            np.union1d(old, np.concatenate(new))
            for old, new in zip(self.edges, limits, strict=True)
        ]
        is_complete = all(len(a) == len(b) for a, b in zip(self.edges, edges, strict=True))
        if self.tables is not None and is_complete:
            return
        self.edges = edges
        cells = _cell_sums(self.masks.transpose(1, 0, 2), edges[0])
        cells = _cell_sums(np.ascontiguousarray(cells.transpose(2, 0, 1)), edges[1])
        sums = cells.cumsum(0, dtype=np.int64).cumsum(1)
        self.tables = np.pad(sums, ((1, 0), (1, 0), (0, 0)))


def _windows(
    image_size: tuple[int, int], level_size: tuple[int, int]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """First and one past the last image pixel that each row, and each column, of a level touches."""
    pixels = [
        (np.arange(size), length, size) for length, size in zip(image_size, level_size, strict=True)
    ]
    return [(i * length // size, -(-(i + 1) * length // size)) for i, length, size in pixels]


def _cell_sums(x: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Sum between one edge and the next along the first axis, in the narrowest type: the fastest."""
    longest = int(np.diff(edges).max(initial=1))
    dtype = np.min_scalar_type(int(x.max(initial=0)) * longest)
    out = np.empty((len(edges) - 1, *x.shape[1:]), dtype)
    for i, (start, end) in enumerate(pairwise(edges)):
        x[start:end].sum(0, dtype=dtype, out=out[i])
    return out


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
    """Clip boxes to the pixels of an image; coordinates that are no numbers become 0."""
    x1, y1, x2, y2 = torch.nan_to_num(boxes).unbind(-1)
    x1, x2 = x1.clamp(0, width - 1), x2.clamp(0, width - 1)
    y1, y2 = y1.clamp(0, height - 1), y2.clamp(0, height - 1)
    return torch.stack([x1, y1, x2, y2], -1)


def _covered_pixels(low: Tensor, high: Tensor, pixels: Tensor) -> Tensor:
    """Share of each pixel [j, j + 1) between ``low`` and ``high``, in pixels of the level."""
    return (high.minimum(pixels + 1) - low.maximum(pixels)).clamp(min=0)


def _pixels_inside(low: Tensor, high: Tensor, pixels: Tensor) -> Tensor:
    """1 for each pixel j between ``low`` and ``high``, where these differ; LGD's rule."""
    size, centre = high - low, (high + low) / 2
    return (((pixels - centre).abs() <= size / 2) & (size > 0)).to(pixels)


def _mask_array(instances: InstanceData) -> np.ndarray:
    """Read an image's instance masks as a uint8 array of shape (n, h, w)."""
    masks = instances.get('masks')
    if masks is None:
        raise ConfigError(
            'model.teacher.use_masks is True, but the training data has no instance masks; load them '
            "(dict(type='LoadAnnotations', with_bbox=True, with_mask=True) in the training "
            'pipeline) or set model.teacher.use_masks=False'
        )
    if isinstance(masks, Tensor):
        return masks.cpu().numpy().astype(np.uint8)
    return masks.to_ndarray().astype(np.uint8, copy=False)


def _crop_masks(masks: Tensor, boxes: Tensor) -> Tensor:
    """Crop each of n masks to its box and resize it to a flat binary vector of shape (n, 49)."""
    if not len(boxes):  # roi_align cannot be launched for nothing
        return boxes.new_zeros(0, MASK_SIZE**2)
    masks = masks.to(boxes.device).to(boxes.dtype)
    indices = torch.arange(len(boxes), device=boxes.device, dtype=boxes.dtype)
    corners = boxes[:, :2], boxes[:, 2:].maximum(boxes[:, :2])  # roi_align refuses reversed boxes
    rois = torch.cat([indices[:, None], *corners], 1)
    crops = roi_align(masks[:, None], rois, (MASK_SIZE, MASK_SIZE), 1.0, 0, 'avg', True)
    return (crops.flatten(1) >= 0.5).to(boxes)
