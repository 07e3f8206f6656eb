"""Runs and records dense heads: their outputs, logits, and which anchors their loss counts."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn as nn
from mmdet.models import BaseDetector
from mmdet.models.dense_heads import GuidedAnchorHead, YOLOXHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from torch import Tensor

from ..errors import ConfigError
from .replay import DetectorOutputs, map_tensors

# YOLOX trains its class logits at positives only, elsewhere they are arbitrary; guided anchors are
# predicted, so student and teacher have different ones.
NOT_COMPARABLE = (GuidedAnchorHead, YOLOXHead)
SMALLEST_PROBABILITY = 1e-6  # a logit of ±13.8


def outputs_from_feats(
    detector: BaseDetector, feats: Sequence[Tensor], with_head: bool
) -> DetectorOutputs:
    """Run a detector's dense head on feature levels, if ``with_head`` and the detector has one."""
    head = find_dense_head(detector)
    if not with_head or head is None:
        return DetectorOutputs(feats)
    outs = head(feats)
    return DetectorOutputs(feats, outs, extract_cls_scores(head, outs))


def find_dense_head(detector: BaseDetector) -> BaseDenseHead | None:
    """Find a detector's dense ``bbox_head``; None if it has none."""
    head = getattr(detector, 'bbox_head', None)
    return head if isinstance(head, BaseDenseHead) else None


def extract_cls_scores(head: BaseDenseHead, outs: Sequence[Any]) -> list[Tensor] | None:
    """Extract the classification logits from the outputs of a dense head.

    Args:
        head: The head, with ``cls_out_channels`` K.
        outs: Return value of its forward; the first item has the logits of shape (B, A·K, h, w) per
            level, or probabilities (TOOD), which become logits.

    Returns:
        Logits of shape (B, h, w, A, K) per level; None if the head has no independent sigmoid per
        class, or its logits are untrained at most anchors or belong to predicted anchors.
    """
    if isinstance(head, NOT_COMPARABLE) or not getattr(head, 'use_sigmoid_cls', False):
        return None
    classes, levels = head.cls_out_channels, outs[0]
    if getattr(head.loss_cls, 'activated', False):
        levels = [torch.logit(x.float(), SMALLEST_PROBABILITY) for x in levels]
    return [x.permute(0, 2, 3, 1).unflatten(-1, (x.shape[1] // classes, classes)) for x in levels]


class HeadRecord:
    """Records the single run of a detector's dense head, as a context.

    Args:
        detector: The detector.
        images: Indices of the images that the loss uses; pass it only their data samples. The head
            takes, and the record covers, the features of all images. None: all.

    Attributes:
        head: The head; None if the detector has none, and nothing is recorded.
    """

    def __init__(self, detector: BaseDetector, images: list[int] | None = None) -> None:
        self.head = find_dense_head(detector)
        self.images = images
        self.outs: Sequence[Any] | None = None
        self.cls_scores: list[Tensor] | None = None
        self.num_logits: list[int] = []  # in each call of the classification loss
        self.weights: list[Tensor | None] = []
        self.handles: list[Any] = []

    @torch.compiler.disable
    def __enter__(self) -> 'HeadRecord':
        if self.head is not None:
            self.handles.append(self.head.register_forward_hook(self._take_outs))
        if isinstance(getattr(self.head, 'loss_cls', None), nn.Module):
            hook = self.head.loss_cls.register_forward_pre_hook
            self.handles.append(hook(self._take_weights, with_kwargs=True))
        return self

    @torch.compiler.disable
    def __exit__(self, *_: Any) -> None:
        for handle in self.handles:
            handle.remove()

    def outputs(self, feats: Sequence[Tensor]) -> DetectorOutputs:
        """Add everything recorded, for all images, to the features."""
        return DetectorOutputs(feats, self.outs, self.cls_scores, self.anchor_flags)

    def anchor_flags(self) -> list[Tensor] | None:
        """Tell which anchors the classification loss counted.

        Ignored anchors have weight 0. With a weight per class (FSAF), an anchor counts if one of its
        classes does. Anchors of images that the loss did not receive count.

        Returns:
            Booleans of shape (B, h, w, A) per level; None if the loss has no weights and counts all,
            does not use ``loss_cls`` (AutoAssign, FreeAnchor, TOOD's first epochs), or the logits
            cannot be compared.

        Raises:
            ConfigError: if the loss covers only some anchors, or its weights are not per level.
        """
        if self.cls_scores is None:
            return None
        counted = self._of_images(self.cls_scores)
        sizes = [x.numel() for x in counted]
        weights = [weight for weight in self.weights if weight is not None]
        if not weights and sum(self.num_logits) in (0, sum(sizes)):
            return None
        if len(weights) != len(sizes) or self.num_logits != sizes:
            raise ConfigError(
                f'the anchors that a {type(self.head).__name__} ignores cannot be told '
                "from its classification loss, so type='LogitTerm' does not take it; accepted: heads "
                "such as RetinaNet's, ATSS's, GFL's or FCOS's, or type='FeatureTerm'"
            )
        flags = [x.new_ones(x.shape[:-1], dtype=torch.bool) for x in self.cls_scores]
        images = slice(None) if self.images is None else self.images
        for level, logits, weight in zip(flags, counted, weights, strict=True):
            level[images] = (weight > 0).reshape(*logits.shape[:-1], -1).any(-1)
        return flags

    def _of_images(self, value: Any) -> Any:
        return value if self.images is None else map_tensors(lambda x: x[self.images], value)

    def _take_outs(self, _head: nn.Module, _args: Any, outs: Sequence[Any]) -> Sequence[Any]:
        self.outs = outs
        self.cls_scores = extract_cls_scores(self.head, outs)
        return self._of_images(outs)

    def _take_weights(self, _loss: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.num_logits.append(args[0].numel())
        self.weights.append(kwargs.get('weight', args[2] if len(args) > 2 else None))
