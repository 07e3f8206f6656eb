"""Takes a dense head's classification logits where it makes them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn as nn
from mmdet.models import BaseDetector
from mmdet.models.dense_heads import GuidedAnchorHead, YOLOXHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from torch import Tensor

from ...errors import ConfigError
from ..terms import DetectorOutputs
from .replay import take_images
from .student import blank_pyramid

# YOLOX trains its class logits at positives alone, what they are elsewhere is chance; guided anchors
# are predicted, so those of student and teacher differ.
NOT_COMPARABLE = (GuidedAnchorHead, YOLOXHead)
SMALLEST_PROBABILITY = 1e-6  # a logit of ±13.8


def has_sigmoid_logits(detector: BaseDetector) -> bool:
    """Tell whether a detector has a dense ``bbox_head`` with an independent sigmoid per class.

    Heads whose logits mean nothing for another detector, or at most anchors, do not count.
    """
    head = getattr(detector, 'bbox_head', None)
    is_comparable = isinstance(head, BaseDenseHead) and not isinstance(head, NOT_COMPARABLE)
    return is_comparable and getattr(head, 'use_sigmoid_cls', False)


def cls_scores_of(head: BaseDenseHead, outputs: Sequence[Any]) -> list[Tensor]:
    """Take the classification logits out of what a dense head's forward returns.

    Args:
        head: The head, with ``cls_out_channels`` K.
        outputs: Its outputs; the first of them are the logits of shape (B, A·K, h, w) per level, or
            probabilities, as TOOD's, whose logits are taken.

    Returns:
        Logits of shape (B, h, w, A, K) per level.
    """
    classes, levels = head.cls_out_channels, outputs[0]
    if getattr(head.loss_cls, 'activated', False):
        levels = [x.float().logit(SMALLEST_PROBABILITY) for x in levels]
    return [x.permute(0, 2, 3, 1).unflatten(-1, (x.shape[1] // classes, classes)) for x in levels]


def outputs_of(
    detector: BaseDetector, feats: Sequence[Tensor], with_logits: bool
) -> DetectorOutputs:
    """Run a detector's dense head on its feature levels, if its logits are asked for."""
    if not with_logits:
        return DetectorOutputs(feats)
    return DetectorOutputs(feats, cls_scores_of(detector.bbox_head, detector.bbox_head(feats)))


@torch.no_grad()
def blank_outputs(detector: BaseDetector, key: str) -> DetectorOutputs:
    """Run a detector on a blank image; errors as in :func:`blank_pyramid`."""
    feats = blank_pyramid(detector, key)
    was_training = detector.training
    detector.eval()
    try:
        return outputs_of(detector, feats, has_sigmoid_logits(detector))
    finally:
        detector.train(was_training)


class HeadRecord:
    """What a dense head did in one call of its forward and its loss.

    Attributes:
        cls_scores: Its logits of shape (B, h, w, A, K) per level.
    """

    def __init__(self, head: BaseDenseHead, images: list[int] | None) -> None:
        self.head = head
        self.images = images
        self.cls_scores: list[Tensor] = []
        self.num_logits: list[int] = []  # in each call of the classification loss
        self.weights: list[Tensor | None] = []

    def anchor_flags(self) -> list[Tensor] | None:
        """Tell which anchors the classification loss counted.

        The assigner gives those that it ignores the weight 0. With a weight for each class (FSAF), an
        anchor counts if one of its classes does. Those of images that the loss did not get count.

        Returns:
            Booleans of shape (B, h, w, A) per level; None if the loss has no weights and counts all,
            or is computed without ``loss_cls`` (AutoAssign, FreeAnchor, TOOD's first epochs).

        Raises:
            ConfigError: if the loss is of some of the anchors, or weighted but not level by level.
        """
        counted = take_images(self.cls_scores, self.images)
        sizes = [x.numel() for x in counted]
        weights = [weight for weight in self.weights if weight is not None]
        if not weights and sum(self.num_logits) in (0, sum(sizes)):
            return None
        if len(weights) != len(sizes) or self.num_logits != sizes:
            raise ConfigError(
                f'model.terms: the anchors that a {type(self.head).__name__} ignores cannot be told '
                "from how it computes its classification loss, so type='LogitTerm' does not take it; "
                "accepted: heads as RetinaNet's, ATSS's, GFL's or FCOS's, or type='FeatureTerm'"
            )
        flags = [x.new_ones(x.shape[:-1], dtype=torch.bool) for x in self.cls_scores]
        images = slice(None) if self.images is None else self.images
        for level, logits, weight in zip(flags, counted, weights, strict=True):
            level[images] = (weight > 0).reshape(*logits.shape[:-1], -1).any(-1)
        return flags

    def _take_outputs(self, _head: nn.Module, _args: Any, outputs: Sequence[Any]) -> Sequence[Any]:
        self.cls_scores = cls_scores_of(self.head, outputs)
        return take_images(outputs, self.images)

    def _take_weights(self, _loss: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.num_logits.append(args[0].numel())
        self.weights.append(kwargs.get('weight', args[2] if len(args) > 2 else None))


@contextmanager
def recorded_head(head: BaseDenseHead, images: list[int] | None = None) -> Iterator[HeadRecord]:
    """Record what a dense head does inside the context, where it runs once.

    Args:
        head: The head.
        images: Indices of the images of the batch whose outputs are handed on to the head's loss,
            which has to be given the data samples of these alone; the record has all. None: all.
    """
    record = HeadRecord(head, images)
    handles = [
        head.register_forward_hook(record._take_outputs),
        head.loss_cls.register_forward_pre_hook(record._take_weights, with_kwargs=True),
    ]
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()
