"""What the feature losses ask of their two pyramids."""

from collections.abc import Sequence

from torch import Tensor

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
