"""Outputs of detectors, as far as distillation compares them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.models import BaseDetector
from mmdet.models.dense_heads import GuidedAnchorHead, YOLOXHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from torch import Tensor

# YOLOX trains its class logits at positives only, elsewhere they are arbitrary; guided anchors are
# predicted, so student and teacher have different ones.
NOT_COMPARABLE = (GuidedAnchorHead, YOLOXHead)
SMALLEST_PROBABILITY = 1e-6  # a logit of ±13.8


@dataclass
class DetectorOutputs:
    """Outputs of a detector for B images.

    Attributes:
        feats: Feature levels of shape (B, C_p, h_p, w_p).
        head: Return value of a dense ``bbox_head``'s forward, such as (logits, box predictions), each
            a list with a tensor of shape (B, channels, h_p, w_p) per level. None if no term needs it
            or the detector has no such head.
        cls_scores: Classification logits of a dense head with independent sigmoids, of shape
            (B, h_p, w_p, A, K) per level, for A anchors per pixel and K classes; None for other heads.
        anchor_flags: Returns which anchors the head's classification loss counts, bool of shape
            (B, h_p, w_p, A) per level, or None if it counts all. Raises a ConfigError if this cannot
            be determined.
        start_level: Index of the first level that a teacher makes itself; lower ones are the
            student's.
        results: Recorded results of assigners and of the single levels of dense heads, if recorded.
    """

    feats: Sequence[Tensor]
    head: Sequence[Any] | None = None
    cls_scores: Sequence[Tensor] | None = None
    anchor_flags: Callable[[], Sequence[Tensor] | None] = lambda: None
    start_level: int = 0
    results: dict[str, list[Any]] | None = None

    def detach(self) -> 'DetectorOutputs':
        """Copy the outputs without gradient."""
        parts = (map_tensors(Tensor.detach, x) for x in (self.feats, self.head, self.cls_scores))
        return DetectorOutputs(*parts, self.anchor_flags, self.start_level)


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Apply a function to the tensors in nested tuples and lists; keep other values."""
    if isinstance(value, (tuple, list)):
        return type(value)(map_tensors(function, x) for x in value)
    return function(value) if isinstance(value, Tensor) else value


def outputs_from_feats(
    detector: BaseDetector, feats: Sequence[Tensor], with_head: bool
) -> DetectorOutputs:
    """Run a detector's dense head on feature levels, if ``with_head`` and the detector has one."""
    head = getattr(detector, 'bbox_head', None)
    if not (with_head and isinstance(head, BaseDenseHead)):
        return DetectorOutputs(feats)
    made = head(feats)
    return DetectorOutputs(feats, made, extract_cls_scores(head, made))


def extract_cls_scores(head: BaseDenseHead, made: Sequence[Any]) -> list[Tensor] | None:
    """Extract the classification logits from the outputs of a dense head.

    Args:
        head: The head, with ``cls_out_channels`` K.
        made: Return value of its forward; the first item has the logits of shape (B, A·K, h, w) per
            level, or probabilities (TOOD), which become logits.

    Returns:
        Logits of shape (B, h, w, A, K) per level; None if the head has no independent sigmoid per
        class, or its logits are untrained at most anchors or belong to predicted anchors.
    """
    if isinstance(head, NOT_COMPARABLE) or not getattr(head, 'use_sigmoid_cls', False):
        return None
    classes, levels = head.cls_out_channels, made[0]
    if getattr(head.loss_cls, 'activated', False):
        levels = [torch.logit(x.float(), SMALLEST_PROBABILITY) for x in levels]
    return [x.permute(0, 2, 3, 1).unflatten(-1, (x.shape[1] // classes, classes)) for x in levels]
