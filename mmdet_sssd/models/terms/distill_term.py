import math
from abc import ABCMeta, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn as nn
from mmdet.structures import SampleList
from torch import Tensor

from ...errors import ConfigError


@dataclass
class DetectorOutputs:
    """What a detector makes of B images, as far as distillation compares it.

    Attributes:
        feats: Feature levels of shape (B, C_p, h_p, w_p).
        cls_scores: Classification logits of a dense head with independent sigmoids, of shape
            (B, h_p, w_p, A, K) per level, for A anchors a pixel and K classes; None of other heads.
        anchor_flags: True for the anchors that the head's classification loss counts, of shape
            (B, h_p, w_p, A) per level; None if it counts all.
    """

    feats: Sequence[Tensor]
    cls_scores: Sequence[Tensor] | None = None
    anchor_flags: Sequence[Tensor] | None = None


class DistillTerm(nn.Module, metaclass=ABCMeta):
    """One of the losses between a student and its pretrained teacher.

    Args:
        key: Its place in the config, for errors.
        distill_coef: Its coefficient λ, >= 0; ``AdaptiveDistillCoefHook(term=NAME)`` may change it
            during training.

    Attributes:
        distill_coef: λ as it is now.
        detach_student: Whether the student's side is detached, so that an adapter alone is trained;
            ``DetachStudentHook(term=NAME)`` sets it.

    Raises:
        ConfigError: if λ is negative.
    """

    compares_logits = False

    def __init__(self, key: str, distill_coef: float) -> None:
        super().__init__()
        check_not_negative(f'{key}.distill_coef', distill_coef)
        self.distill_coef = float(distill_coef)
        self.detach_student = False

    @abstractmethod
    def forward(
        self,
        student: DetectorOutputs,
        teacher: DetectorOutputs,
        batch_inputs: Tensor,
        batch_data_samples: SampleList,
    ) -> dict[str, Tensor]:
        """Compare what student and teacher make of the same images.

        Args:
            student: The student's outputs.
            teacher: The teacher's, without gradient.
            batch_inputs: The images of shape (B, 3, H, W).
            batch_data_samples: Their B data samples.

        Returns:
            ``loss_distill``, λ included, and what is logged beside it.
        """


def check_not_negative(key: str, value: float) -> None:
    """Make sure that a setting is a number >= 0.

    Raises:
        ConfigError: if it is not; the message names the key.
    """
    if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ConfigError(f'{key} is {value!r}; accepted: a number >= 0')
