"""The base class of feature losses."""

from abc import ABCMeta, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn as nn
from torch import Tensor

FeatureLevels = Sequence[Tensor]
"""One map of shape (B, C_p, h_p, w_p) per feature level p."""


class FeatureLoss(nn.Module, metaclass=ABCMeta):
    """A loss between two sets of feature levels: a distance per level, averaged over levels.

    Attributes:
        default_coef: Default λ of a term with this loss.
    """

    default_coef = 1.0

    def forward(self, student_feats: FeatureLevels, teacher_feats: FeatureLevels) -> Tensor:
        """Compute the loss.

        Args:
            student_feats: Levels of shape (B, C_p, h_p, w_p).
            teacher_feats: Levels of the same shapes.

        Returns:
            A scalar in float32 or wider; a level without elements counts as 0.

        Raises:
            ValueError: if the two sides' shapes differ or have no levels.
        """
        return self.average(self.level_distances(student_feats, teacher_feats), student_feats)

    def level_distances(self, student_feats: FeatureLevels, teacher_feats: FeatureLevels) -> Tensor:
        """Compute each level's distance; arguments and errors as in :meth:`forward`.

        Returns:
            Distances of the L levels in float32 or wider, of shape (L,).
        """
        _check_levels(student_feats, teacher_feats)
        pairs = zip(student_feats, teacher_feats, strict=True)
        return torch.stack([self.distance(student, teacher) for student, teacher in pairs])

    @abstractmethod
    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the distance between two maps of shape (B, C, h, w), a scalar."""

    def average(self, distances: Tensor, feats: FeatureLevels) -> Tensor:
        """Average the levels' distances.

        Args:
            distances: Distances of shape (L,), from :meth:`level_distances`.
            feats: The L levels of either side.

        Returns:
            The mean of the distances, a scalar.
        """
        return distances.mean()


def _check_levels(student_feats: FeatureLevels, teacher_feats: FeatureLevels) -> None:
    """Make sure that both sides have the same level shapes."""
    student_shapes = [tuple(x.shape) for x in student_feats]
    teacher_shapes = [tuple(x.shape) for x in teacher_feats]
    if not student_shapes or student_shapes != teacher_shapes:
        raise ValueError(
            'a feature loss needs the same levels on both sides, one or more; the student has '
            f'{student_shapes}, the teacher {teacher_shapes}'
        )
