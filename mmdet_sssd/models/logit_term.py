from collections.abc import Sequence

import torch
from mmdet.models import BaseDetector
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.utils import OptConfigType, reduce_mean
from torch import Tensor

from ..errors import ConfigError
from .building import build_part, completed
from .dense_head import find_dense_head
from .losses import AdaptiveDistillLoss, soft_positive_count
from .replay import DetectorOutputs
from .student import probe_pair
from .teachers import Teacher
from .terms import DistillTerm


@MODELS.register_module()
class LogitTerm(DistillTerm):
    """Compares the classification logits of dense heads with the same anchors and classes.

    Heads need independent sigmoids, and may be anchor-based (RetinaNet, ATSS …) or anchor-free (FCOS
    …). Anchors that the student's assigner ignores or that lie in the padding do not count. Source:
    SAD (https://arxiv.org/abs/1901.00366). Its normaliser is averaged over processes.

    Args:
        student: The built student; the distiller passes it.
        teacher: The built teacher; the distiller passes it.
        distill_loss: Config of an ``AdaptiveDistillLoss``; ``type`` may be left out.
        distill_coef: λ, >= 0. Defaults to 1.

    Raises:
        ConfigError: if a setting is not accepted, the heads are of another kind, or their anchors or
            classes differ.
    """

    needs_head = True

    def __init__(
        self,
        student: BaseDetector,
        teacher: Teacher,
        distill_loss: OptConfigType = None,
        distill_coef: float = 1.0,
    ) -> None:
        super().__init__(distill_coef)
        _check_heads(*probe_pair(student, teacher, with_head=True))
        self.strides = find_dense_head(student).prior_generator.strides  # (width, height) per level
        distill_loss = completed('distill_loss', distill_loss, type='AdaptiveDistillLoss')
        self.distill_loss = build_part('distill_loss', distill_loss, AdaptiveDistillLoss)

    def forward(
        self,
        student: DetectorOutputs,
        teacher: DetectorOutputs,
        batch_inputs: Tensor,
        batch_data_samples: SampleList,
    ) -> dict[str, Tensor]:
        """Compare the logits of all counted anchors; see the base class."""
        logits, targets = _join(student.cls_scores), _join(teacher.cls_scores)
        counts = [
            _inside_image(x, stride, batch_inputs, batch_data_samples)
            for x, stride in zip(student.cls_scores, self.strides, strict=True)
        ]
        flags = student.anchor_flags()
        if flags is not None:
            counts = [x & level for x, level in zip(counts, flags, strict=True)]
        counts = _join([x.unsqueeze(-1) for x in counts])
        positives = soft_positive_count(targets, counts, self.distill_loss.theta)
        return {
            'loss': self.distill_loss(logits, targets, counts, avg_factor=reduce_mean(positives))
        }


def _join(levels: Sequence[Tensor]) -> Tensor:
    """Join levels of shape (B, h, w, A, K) to (B, all anchors, K)."""
    return torch.cat([x.flatten(1, 3) for x in levels], 1)


def _inside_image(
    level: Tensor, stride: tuple[int, int], batch_inputs: Tensor, samples: SampleList
) -> Tensor:
    """Mark the anchors whose pixel of the level (B, h, w, A, K) begins within the image.

    The rest of the H×W pixels is padding. mmdet defines valid anchors alike.

    Returns:
        Booleans of shape (B, h, w, A).
    """
    shapes = [sample.get('img_shape', batch_inputs.shape[2:])[:2] for sample in samples]
    limits = torch.tensor(shapes, dtype=torch.float32).to(level.device, non_blocking=True)
    inside = [
        torch.arange(n, device=level.device) * step < limit
        for n, step, limit in zip(level.shape[1:3], stride[::-1], limits.split(1, 1), strict=True)
    ]
    return (inside[0][:, :, None] & inside[1][:, None]).unsqueeze(-1).expand(level.shape[:-1])


def _check_heads(student: DetectorOutputs, teacher: DetectorOutputs) -> None:
    for role, outputs in (('student', student), ('teacher', teacher)):
        if outputs.cls_scores is None:
            raise ConfigError(
                f'classification logits are compared, but the {role} has no dense bbox_head with '
                'independent sigmoids, trained at all of its fixed anchors; accepted: detectors '
                'such as RetinaNet, ATSS, FCOS or GFL. Two-stage detectors, transformers, YOLOX and '
                "guided anchors take type='FeatureTerm' (wrap --method structural_kd)"
            )
    found = [[tuple(x.shape[1:]) for x in outputs.cls_scores] for outputs in (student, teacher)]
    if found[0] != found[1]:
        raise ConfigError(
            'the logits of student and teacher differ; for the same image their levels are, as '
            f'(height, width, anchors, classes), {found[0]} and {found[1]}. Accepted: a teacher with '
            'the same strides, anchors and classes'
        )
