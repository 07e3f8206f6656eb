"""The base class of feature losses, and two of one formula each."""

from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor

FeatureLevels = Sequence[Tensor]
"""One map of shape (B, C_p, h_p, w_p) per feature level p."""


class FeatureLoss(nn.Module):
    """A loss between two sets of feature levels: a distance per level, averaged over levels.

    Subclasses define :meth:`distance`, or :meth:`distances` for all levels at once.

    Attributes:
        default_coef: Default λ of a term with this loss.
    """

    default_coef = 1.0

    def __init__(self) -> None:  # nn.Module's takes anything, so no misspelt setting would be named
        super().__init__()

    def forward(self, student_feats: FeatureLevels, teacher_feats: FeatureLevels) -> Tensor:
        """Compute the loss.

        Args:
            student_feats: Levels of shape (B, C_p, h_p, w_p).
            teacher_feats: Levels of the same shapes; they get no gradient.

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
        shapes, others = (
            [tuple(x.shape) for x in feats] for feats in (student_feats, teacher_feats)
        )
        if not shapes or shapes != others:
            raise ValueError(
                'a feature loss needs the same levels on both sides, one or more; the student has '
                f'{shapes}, the teacher {others}'
            )
        return self.distances(student_feats, teacher_feats)

    def distances(self, student_feats: FeatureLevels, teacher_feats: FeatureLevels) -> Tensor:
        """Compute each level's distance, for levels of the same shapes."""
        pairs = zip(student_feats, teacher_feats, strict=True)
        return torch.stack([self.distance(student, teacher) for student, teacher in pairs])

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the distance between two maps of shape (B, C, h, w), a scalar."""
        raise NotImplementedError

    def average(self, distances: Tensor, feats: FeatureLevels) -> Tensor:
        """Average the distances, of shape (L,), of the L levels ``feats`` of either side."""
        return distances.mean()


@MODELS.register_module()
class NormedMSELoss(FeatureLoss):
    r"""LGD's distillation loss: mean squared error over the elements of all levels.

    .. math:: \frac{1}{B \sum_p C_p h_p w_p} \sum_p \lVert x_p - t_p \rVert^2

    so larger levels weigh more (LGD, https://arxiv.org/abs/2109.11496, and its reference code).
    :class:`~mmdet_sssd.models.SSSDDistiller` instance-normalises both sides first.

    Example:
        >>> NormedMSELoss()([torch.zeros(1, 1, 1, 2)], [torch.tensor([[[[1., 2.]]]])])
        tensor(2.5000)
    """

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the mean squared error between two maps of shape (B, C, h, w), a finite scalar."""
        dtype = torch.promote_types(student.dtype, torch.float32)
        limit = torch.finfo(dtype).max ** 0.5 / 1e4  # keeps a sum of 10^8 squares finite
        squares = (student.to(dtype) - teacher.to(dtype)).clamp(-limit, limit).square()
        return squares.sum() / max(squares.numel(), 1)

    def average(self, distances: Tensor, feats: FeatureLevels) -> Tensor:
        """Weigh each level by its number of elements; see the base class."""
        sizes = [x.numel() for x in feats]
        shares = torch.tensor([size / max(sum(sizes), 1) for size in sizes], dtype=torch.float64)
        return (distances * shares.to(distances, non_blocking=True)).sum()


@MODELS.register_module()
class CosineLoss(FeatureLoss):
    r"""One minus the cosine of the angle between the channels, averaged over the pixels of a level.

    .. math:: \frac{1}{B h w} \sum_i 1 - \frac{x_i \cdot t_i}{\lVert x_i \rVert \lVert t_i \rVert}

    It takes no notice of the features' scale, which differs between a detector and a foundation
    backbone (RT-DETRv4, https://arxiv.org/abs/2510.25257).

    Example:
        >>> CosineLoss()([torch.tensor([[[[1.]], [[0.]]]])], [torch.tensor([[[[3.]], [[4.]]]])])
        tensor(0.4000)
    """

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the distance between two maps of shape (B, C, h, w), a finite scalar."""
        dtype = torch.promote_types(student.dtype, torch.float32)
        cosine = F.cosine_similarity(_within_one(student.to(dtype)), _within_one(teacher.to(dtype)))
        return (1 - cosine).sum() / max(cosine.numel(), 1)


def _within_one(x: Tensor) -> Tensor:
    """Divide each pixel's channels of (B, C, h, w) by the largest, so that no square overflows."""
    return x / x.detach().abs().amax(1, keepdim=True).clamp(min=1e-6) if x.numel() else x
