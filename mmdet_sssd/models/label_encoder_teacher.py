"""The implicit teacher: labelled objects → label encoder → relation → knowledge mapper → features.

Sources: LGD (https://arxiv.org/abs/2109.11496), section 3, and its reference code.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from mmcv.ops import roi_align
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import get_box_tensor
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..errors import ConfigError, check
from .adapters import ChannelProjection, as_levels, saturate

MASK_SIZE = 7  # side of the instance mask in a descriptor
MOST_ONE_HOT_CLASSES = 256
EMBEDDED_CHANNELS = 64
NUM_HEADS = 8
SMALLEST_AREA = 1e-6  # of a region, in level pixels; an image pixel at stride 512 has 4e-6


@MODELS.register_module()
class LabelEncoderTeacher(BaseModule):
    """The implicit teacher's neck: makes teacher features from labels and the student's features.

    It encodes each labelled object from its box and class (and mask), relates the codes by the
    objects' appearance in the student's features, and paints the result onto each object's region of
    every level. It is trained with the student, by the detection loss of the student's head on its
    features, and dropped at inference.

    Source: LGD (https://arxiv.org/abs/2109.11496) and its reference code; SSSD
    (https://arxiv.org/abs/2303.05015) uses the same teacher. Unlike in LGD, an image may have no
    object, a pixel at an object's edge belongs to its region in part, an object's class also reaches
    the map by a vector of its own, and more than 256 classes are encoded as learned vectors.

    All levels are processed in one width: their own number of channels if all have the same, a
    multiple of 8 and at most 512; else 256 channels, with 1×1 convolutions from and to the levels.

    Args:
        in_channels: Channels C_p of each level, or one number for all.
        num_classes: Number of classes K; labels are in 0..K-1.
        add_context_box: Whether every image gets a context object, which covers the image, has no
            class, and adds its vector to the whole map. Defaults to True.
        detach_appearance: Whether to detach the student's features that enter the teacher, so that
            the teacher's detection loss trains teacher and head only. Defaults to False.
        use_masks: Whether the objects' regions are instance masks, not boxes, and descriptors include
            masks. Defaults to False.
        soft_regions: Whether a region is the share of each level pixel that the object covers, which
            locates its edges to less than a pixel; only what lies within the image's last pixel has
            none. A mask's is of a slightly larger window where sizes do not divide. False: LGD's
            regions, which are 0 or 1. Defaults to True.
        class_vectors: Whether each object is painted with a learned vector of its class in addition,
            which reaches the map past encoder and attention: without it the teacher's class branch
            sees little of the labels (docs/benchmarks.md). False: LGD's teacher. Defaults to True.
        refine_convs: Number of convolutions that refine the painted map, >= 1. Defaults to LGD's 3.

    Raises:
        ConfigError: if ``in_channels``, ``num_classes`` or ``refine_convs`` is below 1.

    Example:
        >>> teacher = LabelEncoderTeacher(in_channels=16, num_classes=3)
        >>> feats = [torch.rand(1, 16, 8, 8), torch.rand(1, 16, 4, 4)]
        >>> sample = DetDataSample(metainfo=dict(img_shape=(64, 64)))
        >>> sample.gt_instances = InstanceData(
        ...     bboxes=torch.tensor([[8., 8., 40., 40.]]), labels=torch.tensor([2]))
        >>> [x.shape for x in teacher(feats, torch.rand(1, 3, 64, 64), [sample])]
        [torch.Size([1, 16, 8, 8]), torch.Size([1, 16, 4, 4])]
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        num_classes: int,
        add_context_box: bool = True,
        detach_appearance: bool = False,
        use_masks: bool = False,
        soft_regions: bool = True,
        class_vectors: bool = True,
        refine_convs: int = 3,
    ) -> None:
        super().__init__()
        self.in_channels = as_levels(in_channels)
        check('in_channels', in_channels, min(self.in_channels, default=0) > 0, '1 or more each')
        check('num_classes', num_classes, num_classes > 0, '1 or more')
        check('refine_convs', refine_convs, refine_convs >= 1, '1 or more')
        self.num_classes = num_classes
        self.add_context_box = add_context_box
        self.detach_appearance = detach_appearance
        self.use_masks = use_masks
        self.soft_regions = soft_regions
        self.class_code = ClassCode(num_classes)
        descriptor_channels = 4 + self.class_code.channels + (MASK_SIZE**2 if use_masks else 0)
        self.projection = ChannelProjection(self.in_channels, multiple_of=NUM_HEADS)
        width = self.projection.width
        self.label_encoder = LabelEncoder(descriptor_channels, width)
        self.appearance_encoder = AppearanceEncoder(width)
        self.relation_adapter = RelationAdapter(width)
        self.class_vectors = ClassVectors(num_classes, width) if class_vectors else None
        self.knowledge_mapper = KnowledgeMapper(width, add_context_box, refine_convs)

    def forward(
        self,
        student_feats: Sequence[Tensor],
        batch_inputs: Tensor,
        batch_data_samples: Sequence[DetDataSample],
    ) -> tuple[Tensor, ...]:
        """Make the teacher's features.

        Args:
            student_feats: The student's feature levels of shape (B, C_p, h_p, w_p).
            batch_inputs: Images of shape (B, 3, H, W); only their size is used.
            batch_data_samples: Their B data samples with ``gt_instances`` in input pixels.

        Returns:
            Teacher features of the same shapes.

        Raises:
            ConfigError: if a level's channels are not among ``in_channels``, or masks are missing.
        """
        self._check_channels(student_feats)
        dtype = torch.promote_types(student_feats[0].dtype, torch.float32)
        objects = LabelledObjects(
            batch_inputs, batch_data_samples, self.use_masks, self.soft_regions, dtype
        )
        regions = objects.regions([tuple(x.shape[-2:]) for x in student_feats])
        # Object 0 is the image. Without a context object only the painting uses it, for its bias.
        first = 0 if self.add_context_box else 1
        labels, valid = objects.labels[:, first:], objects.valid[:, first:]
        descriptors = objects.descriptors(self.class_code)[:, first:]
        label_embeddings = self.label_encoder(descriptors, valid)

        appearance = []
        for x, level_regions in zip(student_feats, regions, strict=True):
            x = self.projection.to_width(x.detach() if self.detach_appearance else x)
            appearance.append(self.appearance_encoder(x, level_regions.maps[:, first:]))
        vectors = self.relation_adapter(appearance, label_embeddings, valid)
        if self.class_vectors is not None:
            vectors = vectors + self.class_vectors(labels)

        teacher_feats = []
        kernels = self.knowledge_mapper.kernels(vectors)
        for x, level_kernels, level_regions in zip(student_feats, kernels, regions, strict=True):
            feats = self.knowledge_mapper(level_kernels, level_regions)
            teacher_feats.append(self.projection.from_width(feats, x.shape[1]))
        return tuple(teacher_feats)

    def _check_channels(self, student_feats: Sequence[Tensor]) -> None:
        channels = [x.shape[1] for x in student_feats]
        if not set(channels) <= set(self.in_channels):
            raise ConfigError(
                f'is {[*self.in_channels]}, but the student has feature levels of {channels} channels; '
                'leave it out to use those of the student',
                'in_channels',
            )


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
        boxes: Boxes (x1, y1, x2, y2) in input pixels, clipped to [0, W - 1] and [0, H - 1] as in LGD,
            of shape (B, 1 + N, 4); zero where padded.
        labels: Class indices of shape (B, 1 + N); -1 for the image and where padded.
        valid: Which of them are objects, the image included, bool of shape (B, 1 + N).
        masks: Per image, the instance masks as a uint8 array of shape (n_b, h, w) on the CPU; None
            without ``use_masks``.

    Raises:
        ConfigError: if ``use_masks`` is set and a data sample has no masks.
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
        boxes = _pad([get_box_tensor(x.bboxes) for x in instances], 0).to(dtype).nan_to_num_()
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
        return [
            Regions(rows[:, :, 1, :, None] * columns[:, :, 1, None], rows, columns)
            for rows, columns in self._covered_rows_and_columns(level_sizes)
        ]

    def _covered_rows_and_columns(
        self, level_sizes: Sequence[tuple[int, int]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Compute how much of each level's rows and columns the objects cover; see :class:`Regions`.

        All levels' rows and columns are computed at once, in one axis: each level's rows, then each
        level's columns, all with one more pixel on both sides.
        """
        counts = [n for axis in zip(*level_sizes, strict=True) for n in axis]
        lengths = [length for length in self.image_size for _ in level_sizes]
        scales = [np.full(n + 2, n / length) for n, length in zip(counts, lengths, strict=True)]
        pixels = [np.arange(-1.0, n + 1) for n in counts]
        constants = np.stack([np.concatenate(scales), np.concatenate(pixels)])
        scale, pixel = torch.from_numpy(constants).to(self.boxes, non_blocking=True)
        num_rows = sum(rows + 2 for rows, _ in level_sizes)

        def along(y: Tensor, x: Tensor) -> Tensor:
            rows, columns = y.expand(-1, -1, num_rows), x.expand(-1, -1, len(pixel) - num_rows)
            return torch.cat([rows, columns], -1)

        x1, y1, x2, y2 = self.boxes.split(1, -1)
        covered = _covered_pixels if self.soft else _pixels_inside
        shares = covered(along(y1, x1) * scale, along(y2, x2) * scale, pixel)
        shares[:, 0] = 1  # the image
        # shifted by -1, 0 and 1 pixel: (B, 1 + N, 3, …)
        shifted = shares.unfold(-1, len(pixel) - 2, 1).contiguous()
        starts = accumulate([n + 2 for n in counts], initial=0)
        sides = [shifted[..., start : start + n] for start, n in zip(starts, counts, strict=False)]
        return [*zip(sides[: len(level_sizes)], sides[len(level_sizes) :], strict=True)]

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


class ClassCode(nn.Module):
    """Codes an object's class in its descriptor.

    Up to 256 classes: the sources' one-hot code in {-1, 1}. More: 64 learned numbers, as the label
    encoder's first transform has 256 weights for each pair of descriptor elements, 373 million with
    a one-hot code of LVIS's 1203 classes.

    Args:
        num_classes: Number of classes K.

    Attributes:
        channels: Length E of a code.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes, self.channels, self.embedding = num_classes, num_classes, None
        if num_classes > MOST_ONE_HOT_CLASSES:
            self.channels = EMBEDDED_CHANNELS
            self.embedding = nn.Embedding(num_classes, EMBEDDED_CHANNELS)

    def forward(self, labels: Tensor) -> Tensor:
        """Code labels of shape (B, N) as (B, N, E).

        The label -1 means no class; its code is all -1 (one-hot) or 0 (learned). Labels above K-1 count
        as K-1; they only occur with an RPN's single class.
        """
        labels = labels.clamp(max=self.num_classes - 1)
        if self.embedding is not None:
            return self.embedding(labels.clamp(min=0)) * (labels >= 0).unsqueeze(-1)
        classes = torch.arange(self.num_classes, device=labels.device)
        return (labels.unsqueeze(-1) == classes) * 2.0 - 1


def normed_linears(*channels: int) -> nn.Sequential:
    """Stack linear → LayerNorm (no affine parameters) → ReLU for each step in ``channels``."""
    layers: list[nn.Module] = []
    for c_in, c_out in pairwise(channels):
        norm = nn.LayerNorm(c_out, elementwise_affine=False)
        layers += [nn.Linear(c_in, c_out), norm, nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class ObjectTransform(nn.Module):
    """Multiplies each object's vector by a matrix predicted from it.

    Args:
        channels: Length d of the vectors; the matrix is d×d.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.to_hidden = normed_linears(channels, 64, 128, 1024, 512, 256)
        self.to_matrix = nn.Linear(256, channels * channels)

    def forward(self, x: Tensor) -> Tensor:
        """Transform vectors of shape (B, N, d) to vectors of the same shape."""
        matrices = self.to_matrix(self.to_hidden(x)).unflatten(-1, (x.shape[-1], x.shape[-1]))
        return (x.unsqueeze(-2).to(matrices.dtype) @ matrices).squeeze(-2)


class LabelEncoder(nn.Module):
    """Encodes an image's label descriptors as label embeddings, after PointNet (LGD, section 3.1).

    Args:
        descriptor_channels: Length k of a descriptor.
        out_channels: Length C of an embedding.
    """

    def __init__(self, descriptor_channels: int, out_channels: int) -> None:
        super().__init__()
        self.descriptor_transform = ObjectTransform(descriptor_channels)
        self.to_local = normed_linears(descriptor_channels, 64)
        self.local_transform = ObjectTransform(64)
        self.to_global = normed_linears(64, 128, 1024)
        self.fuse = normed_linears(64 + 1024, 256)
        self.to_embedding = normed_linears(256, out_channels)

    def forward(self, descriptors: Tensor, valid: Tensor) -> Tensor:
        """Encode the objects of each image jointly.

        Args:
            descriptors: Descriptors of shape (B, N, k), padded to N ≥ 1 objects.
            valid: Which of them are objects, bool of shape (B, N).

        Returns:
            Label embeddings of shape (B, N, C); those of padding are meaningless, but finite.
        """
        local = self.to_local(self.descriptor_transform(descriptors))
        local = self.local_transform(local)
        features = self.to_global(local)
        # The features are ReLU outputs: a zero never wins over an object's.
        over_objects = features.masked_fill(~valid.unsqueeze(-1), 0).amax(1, keepdim=True)
        fused = torch.cat([local, over_objects.expand(-1, local.shape[1], -1)], -1)
        return self.to_embedding(self.fuse(fused))


class AppearanceEncoder(nn.Module):
    """Averages a feature level over each object's region into one vector (LGD, section 3.2).

    All levels share the convolution.

    Args:
        channels: Channels C of every level.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.GroupNorm(1, channels, affine=False)

    def forward(self, x: Tensor, regions: Tensor) -> Tensor:
        """Embed the objects' appearance on one level.

        Args:
            x: Student features of shape (B, C, h, w).
            regions: The objects' regions, in [0, 1], of shape (B, N, h, w), in float32 or wider.

        Returns:
            Appearance embeddings of shape (B, N, C), zero where a region is empty.
        """
        y = F.relu(self.norm(saturate(self.conv(x))), inplace=True).flatten(2)
        regions = regions.flatten(2)
        areas = regions.sum(-1, keepdim=True).clamp(min=SMALLEST_AREA)
        with torch.autocast(x.device.type, enabled=False):  # sums are too large for float16
            return torch.bmm(regions, y.to(regions.dtype).transpose(1, 2)) / areas


class RelationAdapter(nn.Module):
    """Attention from appearance to labels among the objects of each image (LGD, section 3.2).

    All levels share it and are processed in one call.

    Args:
        channels: Length C of the embeddings, a multiple of 8 (the number of heads).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, NUM_HEADS, batch_first=True)

    def forward(self, appearance: list[Tensor], label_embeddings: Tensor, valid: Tensor) -> Tensor:
        """Relate the objects of each image.

        Args:
            appearance: Per level, queries of shape (B, N, C).
            label_embeddings: Keys and values of shape (B, N, C).
            valid: Which of the N are objects, bool of shape (B, N).

        Returns:
            The objects' vectors of shape (L, B, N, C) for L levels; those of padding are
            meaningless, but finite.
        """
        ignored = ~valid
        ignored[:, 0] = False  # may be padding: a softmax needs one key before torch 2.5
        vectors, _ = self.attention(
            torch.cat(appearance, 1),
            label_embeddings,
            label_embeddings,
            key_padding_mask=ignored,
            need_weights=False,
        )
        return vectors.unflatten(1, (len(appearance), -1)).transpose(0, 1)


class ClassVectors(nn.Embedding):
    """A learned vector for each class: its direct way into the map.

    Through encoder and attention alone the class gets lost: at first the attention weighs all objects
    of an image alike, so that an object's own label has no effect, and the encoder's embeddings become
    equal before the attention learns to tell objects apart.

    Args:
        num_classes: Number of classes K.
        channels: Length C of a vector.
    """

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__(num_classes + 1, channels, padding_idx=num_classes)

    def forward(self, labels: Tensor) -> Tensor:
        """Look up labels of shape (B, N); returns (B, N, C), zero for the label -1, no class.

        Labels above K-1 count as K-1, as in :class:`ClassCode`.
        """
        labels = labels.clamp(max=self.padding_idx - 1) % self.num_embeddings  # -1: the padding
        return super().forward(labels)


class KnowledgeMapper(nn.Module):
    """Paints object vectors onto their regions and refines the map into teacher features.

    LGD, section 3.3. Shared by all levels.

    Args:
        channels: Channels C of every level.
        add_context_box: Whether the context object's vector is added to every pixel.
        refine_convs: Number of convolutions that refine the map, >= 1.
    """

    def __init__(self, channels: int, add_context_box: bool, refine_convs: int) -> None:
        super().__init__()
        self.object_proj = nn.Linear(channels, channels)
        self.object_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.context_proj = nn.Linear(channels, channels) if add_context_box else None
        layers: list[nn.Module] = []
        for _ in range(refine_convs):
            conv = nn.Conv2d(channels, channels, 3, padding=1)
            norm = nn.GroupNorm(1, channels, affine=False)
            layers += [conv, norm, nn.ReLU(inplace=True)]
        self.refine = nn.Sequential(*layers[:-1])

    def kernels(self, vectors: Tensor) -> Tensor:
        """Fold the objects' vectors into the first convolution's kernel, for all levels at once.

        LGD paints each vector onto its region and convolves the map. Both are linear: the vector can be
        multiplied into the kernel first, which then convolves the object's region, from 1 to D = C
        channels. That is cheaper unless there are hundreds of objects.

        Args:
            vectors: Object vectors of shape (L, B, N, C) for L levels, or with the context object's,
                which comes first, of shape (L, B, 1 + N, C).

        Returns:
            Kernels of shape (L, B, 1 + N, 3, D, 3), whose last axes are the kernel's column, the output
            channel and the kernel's row. The first is the image's: its bias, at the centre.
        """
        bias = self.object_conv.bias.expand(*vectors.shape[:2], -1)
        if self.context_proj is not None:
            bias = bias + self.context_proj(vectors[:, :, 0])
            vectors = vectors[:, :, 1:]
        # to (C in, kernel column, D out, kernel row)
        weight = self.object_conv.weight.permute(1, 3, 0, 2)
        kernels = (self.object_proj(vectors) @ weight.flatten(1)).unflatten(-1, weight.shape[1:])
        of_image = F.pad(bias[:, :, None, None, :, None], (1, 1, 0, 0, 1, 1))  # 0 around the middle
        return torch.cat([of_image.to(kernels.dtype), kernels], 2)

    def forward(self, kernels: Tensor, regions: Regions) -> Tensor:
        """Make the teacher features of one level, of shape (B, C, h, w).

        Args:
            kernels: The level's, of shape (B, 1 + N, 3, D, 3).
            regions: The level's regions of the image, which comes first, and its N objects.
        """
        return self.refine(F.relu(self.painted_conv(kernels, regions), inplace=True))

    def painted_conv(self, kernels: Tensor, regions: Regions) -> Tensor:
        """Compute the first convolution of the map, of shape (B, D, h, w), from kernels and regions.

        Boxes are convolved first along the rows, for each kernel column, then along the columns, which
        sums over objects: a third of the multiplications, and nothing of the size of the regions' maps
        is kept for the backward pass here.
        """
        if regions.rows is None:
            per_image = kernels.permute(0, 3, 1, 4, 2)  # B, D, 1 + N, a row, a column
            maps = torch.cat([torch.ones_like(regions.maps[:, :1]), regions.maps[:, 1:]], 1)
            maps = maps.flatten(0, 1).to(kernels.dtype)
            painted = F.conv2d(maps, per_image.flatten(0, 1), padding=1, groups=len(kernels))
            return painted.unflatten(0, (len(kernels), -1))
        row_profiles, column_profiles = regions.rows.flatten(0, 1), regions.columns.flatten(1, 2)
        strips = torch.bmm(kernels.flatten(0, 1).flatten(1, 2), row_profiles)  # B(1 + N), 3D, h
        strips = strips.view(*column_profiles.shape[:2], -1)  # B, (1 + N) · 3, D · h
        painted = torch.bmm(strips.transpose(1, 2), column_profiles)
        return painted.unflatten(1, (-1, row_profiles.shape[-1]))
