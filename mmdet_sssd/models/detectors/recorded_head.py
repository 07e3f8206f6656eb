"""Takes a dense head's classification logits where it makes them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn as nn
from mmdet.models import BaseDetector
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from torch import Tensor

from ...errors import ConfigError
from ..terms import DetectorOutputs
from .student import blank_pyramid


def has_sigmoid_logits(detector: BaseDetector) -> bool:
    """Tell whether a detector has a dense ``bbox_head`` with an independent sigmoid per class."""
    head = getattr(detector, 'bbox_head', None)
    return isinstance(head, BaseDenseHead) and getattr(head, 'use_sigmoid_cls', False)


def cls_scores_of(head: BaseDenseHead, outputs: Sequence[Any]) -> list[Tensor]:
    """Take the classification logits out of what a dense head's forward returns.

    Args:
        head: The head, with ``cls_out_channels`` K.
        outputs: Its outputs; the first of them are the logits of shape (B, A·K, h, w) per level.

    Returns:
        Logits of shape (B, h, w, A, K) per level.
    """
    classes = head.cls_out_channels
    return [
        x.permute(0, 2, 3, 1).unflatten(-1, (x.shape[1] // classes, classes)) for x in outputs[0]
    ]


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
    """What a dense head did in one call of its loss.

    Attributes:
        cls_scores: Its logits of shape (B, h, w, A, K) per level.
    """

    def __init__(self, head: BaseDenseHead) -> None:
        self.head = head
        self.cls_scores: list[Tensor] = []
        self.weights: list[Tensor | None] = []

    def anchor_flags(self) -> list[Tensor] | None:
        """Tell which anchors the classification loss counted.

        The assigner gives those that it ignores the weight 0.

        Returns:
            Booleans of shape (B, h, w, A) per level; None if the loss has no weights.

        Raises:
            ConfigError: if the loss was not computed level by level on all anchors.
        """
        if all(weight is None for weight in self.weights):
            return None
        shapes = [x.shape[:-1] for x in self.cls_scores]
        found = [None if weight is None else len(weight.flatten()) for weight in self.weights]
        if found != [shape.numel() for shape in shapes]:
            raise ConfigError(
                f'model.terms: the anchors that a {type(self.head).__name__} ignores cannot be told '
                "from how it computes its classification loss, so type='LogitTerm' does not take it; "
                "accepted: heads as RetinaNet's, ATSS's, GFL's or FCOS's, or type='FeatureTerm'"
            )
        return [
            (weight > 0).reshape(shape) for weight, shape in zip(self.weights, shapes, strict=True)
        ]

    def _take_outputs(self, _head: nn.Module, _args: Any, outputs: Sequence[Any]) -> None:
        self.cls_scores = cls_scores_of(self.head, outputs)

    def _take_weights(self, _loss: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.weights.append(kwargs.get('weight', args[2] if len(args) > 2 else None))


@contextmanager
def recorded_head(head: BaseDenseHead) -> Iterator[HeadRecord]:
    """Record what a dense head does inside the context, where its loss is computed once."""
    record = HeadRecord(head)
    handles = [
        head.register_forward_hook(record._take_outputs),
        head.loss_cls.register_forward_pre_hook(record._take_weights, with_kwargs=True),
    ]
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()
