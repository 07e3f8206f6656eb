from collections.abc import Sequence

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.model import BaseModule
from torch import Tensor

from ...errors import ConfigError
from ..layers import (
    AppearanceEncoder,
    KnowledgeMapper,
    LabelEncoder,
    LabelledObjects,
    RelationAdapter,
)
from ..layers.labelled_objects import MASK_SIZE
from ..layers.relation_adapter import NUM_HEADS


@MODELS.register_module()
class LabelEncoderTeacher(BaseModule):
    """The implicit teacher: makes teacher features from labels and the student's own features.

    Each labelled object is encoded from its box and class (and mask), looked up by how it appears in
    the student's features, and painted back onto its region of each level. The teacher is trained
    with the student, by the detection loss of the student's head on its features, and dropped at
    inference.

    Source: LGD (https://arxiv.org/abs/2109.11496) and its reference code; SSSD
    (https://arxiv.org/abs/2303.05015) uses the same teacher. Unlike LGD's, an image may have no
    object.

    Args:
        in_channels: Channels C of every level, a multiple of 8.
        num_classes: Number of classes K; labels are in 0..K-1.
        add_context_box: Whether every image gets one more object, as large as the image and of no
            class, whose vector is broadcast over the whole map. Defaults to True.
        detach_appearance: Whether the student's features are detached on their way into the teacher,
            so that the teacher's detection loss trains teacher and head only. Defaults to False.
        use_masks: Whether instance masks, not boxes, are the objects' regions, and part of their
            descriptors. Defaults to False.

    Raises:
        ConfigError: if an argument is not one of these.

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
        in_channels: int,
        num_classes: int,
        add_context_box: bool = True,
        detach_appearance: bool = False,
        use_masks: bool = False,
    ) -> None:
        super().__init__()
        if in_channels < 1 or in_channels % NUM_HEADS:
            raise ConfigError(
                f'model.teacher.in_channels is {in_channels}; accepted: multiples of {NUM_HEADS}, '
                'the number of its attention heads'
            )
        if num_classes < 1:
            raise ConfigError(f'model.teacher.num_classes is {num_classes}; accepted: 1 or more')
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.add_context_box = add_context_box
        self.detach_appearance = detach_appearance
        self.use_masks = use_masks
        descriptor_channels = 4 + num_classes + (MASK_SIZE**2 if use_masks else 0)
        self.label_encoder = LabelEncoder(descriptor_channels, in_channels)
        self.appearance_encoder = AppearanceEncoder(in_channels)
        self.relation_adapter = RelationAdapter(in_channels)
        self.knowledge_mapper = KnowledgeMapper(in_channels, add_context_box)

    def forward(
        self,
        student_feats: Sequence[Tensor],
        batch_inputs: Tensor,
        batch_data_samples: Sequence[DetDataSample],
    ) -> tuple[Tensor, ...]:
        """Make the teacher's features.

        Args:
            student_feats: The student's feature levels of shape (B, C, h_p, w_p).
            batch_inputs: Images of shape (B, 3, H, W); only their size is used.
            batch_data_samples: Their B data samples with ``gt_instances`` in input pixels.

        Returns:
            Teacher features of the same shapes.

        Raises:
            ConfigError: if the levels have not ``in_channels`` channels, or masks are missing.
        """
        self._check_channels(student_feats)
        dtype = torch.promote_types(student_feats[0].dtype, torch.float32)
        objects = LabelledObjects.from_samples(
            batch_inputs, batch_data_samples, self.use_masks, dtype
        )
        descriptors, valid = objects.descriptors(self.num_classes), objects.valid
        regions = [objects.regions(tuple(x.shape[-2:])) for x in student_feats]
        seen = regions
        if self.add_context_box:  # the context object stands first
            context = objects.context_descriptors(self.num_classes)
            descriptors = torch.cat([context, descriptors], 1)
            valid = torch.cat([torch.ones_like(valid[:, :1]), valid], 1)
            seen = [torch.cat([objects.context_regions(x.shape[-2:]), x], 1) for x in regions]
        label_embeddings = self.label_encoder(descriptors, valid)
        appearance = [
            self.appearance_encoder(x.detach() if self.detach_appearance else x, region)
            for x, region in zip(student_feats, seen, strict=True)
        ]
        related = self.relation_adapter(appearance, label_embeddings, valid)
        return tuple(
            self.knowledge_mapper(
                vectors[:, 1:] if self.add_context_box else vectors,
                region,
                vectors[:, 0] if self.add_context_box else None,
            )
            for vectors, region in zip(related, regions, strict=True)
        )

    def _check_channels(self, student_feats: Sequence[Tensor]) -> None:
        channels = [x.shape[1] for x in student_feats]
        if set(channels) != {self.in_channels}:
            raise ConfigError(
                f'model.teacher.in_channels is {self.in_channels}, but the student has feature '
                f'levels of {channels} channels; leave in_channels out to read it off the student'
            )
