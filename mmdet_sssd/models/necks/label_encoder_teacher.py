import logging
from collections.abc import Sequence

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.logging import print_log
from mmengine.model import BaseModule
from torch import Tensor

from ...errors import ConfigError, check
from ..layers import (
    AppearanceEncoder,
    ChannelProjection,
    EmbeddedClass,
    KnowledgeMapper,
    LabelEncoder,
    LabelledObjects,
    OneHotClass,
    RelationAdapter,
    as_levels,
    common_width,
)
from ..layers.labelled_objects import MASK_SIZE
from ..layers.recomputed import recomputed
from ..layers.relation_adapter import NUM_HEADS

MOST_ONE_HOT_CLASSES = 256


@MODELS.register_module()
class LabelEncoderTeacher(BaseModule):
    """The implicit teacher's neck: makes teacher features from labels and the student's features.

    It encodes each labelled object from its box and class (and mask), relates the codes by the
    objects' appearance in the student's features, and paints the result onto each object's region of
    every level. It is trained with the student, by the detection loss of the student's head on its
    features, and dropped at inference.

    Source: LGD (https://arxiv.org/abs/2109.11496) and its reference code; SSSD
    (https://arxiv.org/abs/2303.05015) uses the same teacher. Unlike in LGD, an image may have no
    object, and a pixel at an object's edge belongs to its region in part.

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
            locates its edges to less than a pixel and leaves no region empty. False: LGD's regions,
            which are 0 or 1. Defaults to True.
        embed_classes: Whether the descriptor has a learned vector of 64 numbers for the class instead
            of the sources' one-hot code, whose weights grow with K². None, the default: for more than
            256 classes.
        refine_convs: Number of convolutions that refine the painted map, >= 1. Defaults to LGD's 3.
        refine_kernel: Their kernel size, odd. Defaults to LGD's 3.
        with_cp: Whether to recompute the maps' activations in the backward pass, to save memory.
            Defaults to False.

    Raises:
        ConfigError: if ``in_channels``, ``num_classes`` or ``refine_convs`` is below 1, or
            ``refine_kernel`` even.

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
        embed_classes: bool | None = None,
        refine_convs: int = 3,
        refine_kernel: int = 3,
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels = as_levels(in_channels)
        check('in_channels', in_channels, min(self.in_channels, default=0) > 0, '1 or more each')
        check('num_classes', num_classes, num_classes > 0, '1 or more')
        check('refine_convs', refine_convs, refine_convs >= 1, '1 or more')
        check('refine_kernel', refine_kernel, refine_kernel % 2 == 1, 'an odd number')
        self.num_classes = num_classes
        self.add_context_box = add_context_box
        self.detach_appearance = detach_appearance
        self.use_masks = use_masks
        self.soft_regions = soft_regions
        self.class_code = _class_code(num_classes, embed_classes)
        descriptor_channels = 4 + self.class_code.channels + (MASK_SIZE**2 if use_masks else 0)
        width = common_width(self.in_channels, multiple_of=NUM_HEADS)
        self.projection = ChannelProjection(self.in_channels, width)
        self.label_encoder = LabelEncoder(descriptor_channels, width)
        self.appearance_encoder = AppearanceEncoder(width)
        self.relation_adapter = RelationAdapter(width)
        self.knowledge_mapper = KnowledgeMapper(width, add_context_box, refine_convs, refine_kernel)
        self.with_cp = with_cp

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
        objects = LabelledObjects.from_samples(
            batch_inputs, batch_data_samples, self.use_masks, self.soft_regions, dtype
        )
        descriptors, valid = objects.descriptors(self.class_code), objects.valid
        sizes = [tuple(x.shape[-2:]) for x in student_feats]
        regions = [objects.regions(size) for size in sizes]
        seen = regions
        if self.add_context_box:  # the context object comes first
            context = objects.context_descriptors(self.class_code)
            descriptors = torch.cat([context, descriptors], 1)
            valid = torch.cat([torch.ones_like(valid[:, :1]), valid], 1)
            seen = [torch.cat([objects.context_regions(x.shape[-2:]), x], 1) for x in regions]
        label_embeddings = self.label_encoder(descriptors, valid)
        appearance = [
            recomputed(self.with_cp, self._appearance, x, region)
            for x, region in zip(student_feats, seen, strict=True)
        ]
        related = self.relation_adapter(appearance, label_embeddings, valid)
        return tuple(
            recomputed(
                self.with_cp, self._paint, vectors, region, objects.extents(size), x.shape[1]
            )
            for vectors, region, size, x in zip(related, regions, sizes, student_feats, strict=True)
        )

    def _appearance(self, x: Tensor, regions: Tensor) -> Tensor:
        """Embed the objects' appearance, (B, N, C), on a level of shape (B, C_p, h, w)."""
        if self.detach_appearance:
            x = x.detach()
        return self.appearance_encoder(self.projection.to_width(x), regions)

    def _paint(
        self,
        vectors: Tensor,
        regions: Tensor,
        extents: tuple[Tensor, Tensor] | None,
        channels: int,
    ) -> Tensor:
        """Paint the objects' vectors into teacher features of shape (B, ``channels``, h, w)."""
        context = None
        if self.add_context_box:
            context, vectors = vectors[:, 0], vectors[:, 1:]
        return self.projection.from_width(
            self.knowledge_mapper(vectors, regions, context, extents), channels
        )

    def _check_channels(self, student_feats: Sequence[Tensor]) -> None:
        channels = [x.shape[1] for x in student_feats]
        if not set(channels) <= set(self.in_channels):
            raise ConfigError(
                f'is {[*self.in_channels]}, but the student has feature levels of {channels} channels; '
                'leave it out to use those of the student',
                'in_channels',
            )


def _class_code(num_classes: int, embed_classes: bool | None) -> OneHotClass | EmbeddedClass:
    if embed_classes is None:
        embed_classes = num_classes > MOST_ONE_HOT_CLASSES
        if embed_classes:
            print_log(
                f'{num_classes} classes are more than {MOST_ONE_HOT_CLASSES}: the teacher encodes an '
                "object's class as a learned vector, not in the papers' one-hot code; set "
                'model.teacher.embed_classes=True or False to choose without this warning.',
                logger='current',
                level=logging.WARNING,
            )
    return EmbeddedClass(num_classes) if embed_classes else OneHotClass(num_classes)
