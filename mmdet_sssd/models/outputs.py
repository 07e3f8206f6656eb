"""What detectors make of images, as far as distillation compares it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.models import BaseDetector
from mmdet.models.dense_heads import GuidedAnchorHead, YOLOXHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from torch import Tensor

# YOLOX trains its class logits at positives alone, elsewhere they are chance; guided anchors are
# predicted, so those of student and teacher differ.
NOT_COMPARABLE = (GuidedAnchorHead, YOLOXHead)
SMALLEST_PROBABILITY = 1e-6  # a logit of ±13.8


@dataclass
class DetectorOutputs:
    """What a detector makes of B images.

    Attributes:
        feats: Feature levels of shape (B, C_p, h_p, w_p).
        head: What the forward of a dense ``bbox_head`` returns, such as (logits, box predictions),
            each a list with a tensor of shape (B, channels, h_p, w_p) per level. None if no term
            needs it or the detector has no such head.
        cls_scores: Classification logits of a dense head with independent sigmoids, of shape
            (B, h_p, w_p, A, K) per level, for A anchors a pixel and K classes; None of other heads.
        anchor_flags: Gives true for the anchors that the head's classification loss counts, of shape
            (B, h_p, w_p, A) per level, or None if it counts all; a ConfigError if that cannot be told.
        start_level: Index of a teacher's first level that is its own; before it are the student's.
        answers: What assigners and single levels of dense heads answered, where that was kept.
    """

    feats: Sequence[Tensor]
    head: Sequence[Any] | None = None
    cls_scores: Sequence[Tensor] | None = None
    anchor_flags: Callable[[], Sequence[Tensor] | None] = lambda: None
    start_level: int = 0
    answers: dict[str, list[Any]] | None = None

    def detach(self) -> 'DetectorOutputs':
        """Give the same outputs without their gradient."""
        parts = (map_tensors(Tensor.detach, x) for x in (self.feats, self.head, self.cls_scores))
        return DetectorOutputs(*parts, self.anchor_flags, self.start_level)


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Apply a function to the tensors in (nested) tuples and lists; other values stay."""
    if isinstance(value, (tuple, list)):
        return type(value)(map_tensors(function, x) for x in value)
    return function(value) if isinstance(value, Tensor) else value


def outputs_on(detector: BaseDetector, feats: Sequence[Tensor], with_head: bool) -> DetectorOutputs:
    """Run a detector's dense head, if it is asked for and there, on feature levels."""
    head = getattr(detector, 'bbox_head', None)
    if not (with_head and isinstance(head, BaseDenseHead)):
        return DetectorOutputs(feats)
    made = head(feats)
    return DetectorOutputs(feats, made, cls_scores_of(head, made))


def cls_scores_of(head: BaseDenseHead, made: Sequence[Any]) -> list[Tensor] | None:
    """Take the classification logits out of what a dense head's forward returns.

    Args:
        head: The head, with ``cls_out_channels`` K.
        made: Its outputs; the first of them are the logits of shape (B, A·K, h, w) per level, or
            probabilities, as TOOD's, whose logits are taken.

    Returns:
        Logits of shape (B, h, w, A, K) per level; None if the head has no independent sigmoid per
        class, or its logits mean nothing at most anchors or for another detector.
    """
    if isinstance(head, NOT_COMPARABLE) or not getattr(head, 'use_sigmoid_cls', False):
        return None
    classes, levels = head.cls_out_channels, made[0]
    if getattr(head.loss_cls, 'activated', False):
        levels = [torch.logit(x.float(), SMALLEST_PROBABILITY) for x in levels]
    return [x.permute(0, 2, 3, 1).unflatten(-1, (x.shape[1] // classes, classes)) for x in levels]
