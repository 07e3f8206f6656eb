"""What the feature losses have in common."""

import math
from collections.abc import Sequence

from torch import Tensor

from ...errors import ConfigError

FeatureLevels = Sequence[Tensor]
"""One map of shape (B, C, h, w) per feature level."""


def check_levels(student_feats: FeatureLevels, teacher_feats: FeatureLevels) -> None:
    """Make sure that two pyramids can be compared level by level.

    Raises:
        ValueError: if there are no levels, or the shapes of the two sides differ.
    """
    student_shapes = [tuple(x.shape) for x in student_feats]
    teacher_shapes = [tuple(x.shape) for x in teacher_feats]
    if not student_shapes or student_shapes != teacher_shapes:
        raise ValueError(
            'a feature loss needs the same levels on both sides, one or more; the student has '
            f'{student_shapes}, the teacher {teacher_shapes}'
        )


def check_loss_weight(loss_weight: float) -> None:
    """Make sure that a loss's factor is a number >= 0.

    Raises:
        ConfigError: if it is not.
    """
    if not 0 <= loss_weight < math.inf:
        raise ConfigError(f'distill_loss.loss_weight is {loss_weight!r}; accepted: a number >= 0')
