import math
from collections.abc import Sequence

import torch
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.utils import ConfigType, reduce_mean
from torch import Tensor

from ...errors import ConfigError
from ..config_class import is_config_of
from ..losses import AdaptiveDistillLoss, soft_positive_count
from .distill_term import DetectorOutputs, DistillTerm


@MODELS.register_module()
class LogitTerm(DistillTerm):
    """Distills the classification logits of a pretrained teacher with the same anchors and classes.

    For dense heads with independent sigmoids, anchor-based (RetinaNet, ATSS …) or anchor-free (FCOS
    …). What the assigner of the student's head ignores and what lies in the padding of the batch does
    not count. Source: SAD (https://arxiv.org/abs/1901.00366). Its normaliser is averaged over
    processes.

    Args:
        key: Its place in the config; the distiller sets it.
        student: The student's outputs for a blank image; the distiller sets it.
        teacher: The teacher's; the distiller sets it.
        distill_loss: Config of an ``AdaptiveDistillLoss``; ``type`` may be left out.
        distill_coef: λ, >= 0. Defaults to 1.

    Raises:
        ConfigError: if an argument is not one of these, the heads are not of this kind, or their
            anchors or classes differ.
    """

    compares_logits = True

    def __init__(
        self,
        key: str,
        student: DetectorOutputs,
        teacher: DetectorOutputs,
        distill_loss: ConfigType | None = None,
        distill_coef: float = 1.0,
    ) -> None:
        super().__init__(key, distill_coef)
        _check_heads(key, student, teacher)
        distill_loss = {'type': 'AdaptiveDistillLoss', **(distill_loss or {})}
        if not is_config_of(distill_loss, AdaptiveDistillLoss):
            raise ConfigError(
                f'{key}.distill_loss is {distill_loss!r}, which does not compare classification '
                'logits; accepted: AdaptiveDistillLoss'
            )
        self.distill_loss = MODELS.build(distill_loss)

    def forward(
        self,
        student: DetectorOutputs,
        teacher: DetectorOutputs,
        batch_inputs: Tensor,
        batch_data_samples: SampleList,
    ) -> dict[str, Tensor]:
        """Compare the logits of all anchors that count."""
        logits, targets = _join(student.cls_scores), _join(teacher.cls_scores)
        if self.detach_student:
            logits = logits.detach()
        counts = [_inside_image(x, batch_inputs, batch_data_samples) for x in student.cls_scores]
        if student.anchor_flags is not None:
            counts = [x & flags for x, flags in zip(counts, student.anchor_flags, strict=True)]
        counts = _join([x.unsqueeze(-1) for x in counts])
        positives = soft_positive_count(targets, counts, self.distill_loss.theta)
        loss = self.distill_loss(logits, targets, counts, avg_factor=reduce_mean(positives))
        return {'loss_distill': self.distill_coef * loss}


def _join(levels: Sequence[Tensor]) -> Tensor:
    """Join levels of shape (B, h, w, A, K) to (B, all anchors, K)."""
    return torch.cat([x.flatten(1, 3) for x in levels], 1)


def _inside_image(level: Tensor, batch_inputs: Tensor, samples: SampleList) -> Tensor:
    """Tell the anchors whose pixel of the level (B, h, w, A, K) begins within the image.

    The rest of the batch's images of H×W pixels is padding. As mmdet's valid anchors are found.

    Returns:
        Booleans of shape (B, h, w, A).
    """
    height, width = batch_inputs.shape[2:]
    shapes = [sample.get('img_shape', (height, width))[:2] for sample in samples]
    limits = torch.tensor(shapes, dtype=torch.float32).to(level.device, non_blocking=True)
    inside = [
        torch.arange(n, device=level.device) * _stride(size, n) < limit
        for n, size, limit in zip(
            level.shape[1:3], (height, width), limits.split(1, 1), strict=True
        )
    ]
    return (inside[0][:, :, None] & inside[1][:, None]).unsqueeze(-1).expand(level.shape[:-1])


def _stride(size: int, count: int) -> int:
    """Find the power of two that ``count`` strides cover ``size`` pixels with, the last in part."""
    return 2 ** math.ceil(math.log2(size / count))


def _check_heads(key: str, student: DetectorOutputs, teacher: DetectorOutputs) -> None:
    for role, outputs in (('model.student', student), ('model.pretrained_teacher', teacher)):
        if outputs.cls_scores is None:
            raise ConfigError(
                f'{key} compares classification logits, but {role} has no dense bbox_head with '
                'independent sigmoids, trained at all of its fixed anchors; accepted: detectors as '
                'RetinaNet, ATSS, FCOS or GFL. Two-stage detectors, transformers, YOLOX and guided '
                "anchors take type='FeatureTerm'"
            )
    found = [[tuple(x.shape[1:]) for x in outputs.cls_scores] for outputs in (student, teacher)]
    if found[0] != found[1]:
        raise ConfigError(
            f'{key}: the logits of student and teacher differ; for the same image their levels are, '
            f'as (height, width, anchors, classes), {found[0]} and {found[1]}. Accepted: a teacher '
            'with the same strides, anchors and classes'
        )
