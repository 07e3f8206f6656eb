"""The base class of feature losses, SSSD's, LGD's, and the cosine."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...errors import check

LOGIT_LIMIT = 1e30  # differences of two clamped logits stay finite in float32
BLOCK = 2**17  # elements per step on a CPU: the temporaries fit its cache
LN2 = math.log(2)

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
            teacher_feats: Levels of the same shapes; the distiller passes them detached.

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
        """Average the levels' distances, of shape (L,); ``feats`` gives the levels' sizes."""
        return distances.mean()


@MODELS.register_module()
class JSDistanceLoss(FeatureLoss):
    r"""SSSD's distillation loss: the Jensen-Shannon distance, averaged over levels.

    .. math:: \frac{1}{N} \sum_{p=1}^{N} \operatorname{mean} \sqrt{D_{JS}(P_p \| Q_p)}, \quad
        D_{JS} = \tfrac12 D_{KL}(P \| M) + \tfrac12 D_{KL}(Q \| M), \quad M = \tfrac12 (P + Q)

    over N levels and the distributions :math:`P = \mathrm{softmax}(x / \tau)` of each, with logarithms
    to base 2, so that each distance is a metric in [0, 1] (SSSD, https://arxiv.org/abs/2303.05015,
    which leaves the distributions open). Loss and gradient are finite for any finite maps; between
    equal maps the gradient is 0. The teacher's maps get no gradient. A second derivative is an error.

    Args:
        dim: Axis of a distribution: ``'spatial'`` (one per channel, over h·w), ``'channel'`` (one per
            pixel, over C) or ``'all'`` (one per image, over C·h·w). Defaults to ``'spatial'``.
        tau: Temperature τ of the softmax, > 0. Defaults to 1.

    Raises:
        ConfigError: if ``dim`` is unknown or ``tau`` not positive.

    Example:
        >>> loss = JSDistanceLoss(dim='channel')
        >>> feats = [torch.rand(2, 8, 16, 16), torch.rand(2, 8, 8, 8)]
        >>> loss(feats, feats)
        tensor(0.)
    """

    DIMS = ('spatial', 'channel', 'all')
    default_coef = 10.0

    def __init__(self, dim: str = 'spatial', tau: float = 1.0) -> None:
        super().__init__()
        check('dim', dim, dim in self.DIMS, ', '.join(self.DIMS))
        check('tau', tau, 0 < tau < math.inf, 'a number > 0')
        self.dim = dim
        self.tau = tau

    def distances(self, student_feats: FeatureLevels, teacher_feats: FeatureLevels) -> Tensor:
        """Compute the levels' mean distances, in [0, 1], all levels at once; see the base class."""
        students = [_rows(x, self.dim) for x in student_feats]
        teachers = [_rows(x, self.dim) for x in teacher_feats]
        rows = _JSDistances.apply(self.tau, *students, *teachers).split([len(x) for x in students])
        return torch.stack([x.mean() if len(x) else x.sum() for x in rows])


def _rows(x: Tensor, dim: str) -> Tensor:
    """Arrange a map of shape (B, C, h, w) as a matrix, each row of which becomes a distribution."""
    if dim == 'channel':
        return x.permute(0, 2, 3, 1).flatten(0, 2)
    return x.flatten(2).flatten(0, 1) if dim == 'spatial' else x.flatten(1)


class _JSDistances(torch.autograd.Function):
    r"""Square roots of the Jensen-Shannon divergences of softmax distributions, with their gradient.

    With :math:`\delta = \ln(p / q) / 2` and :math:`c = 2 \ln \cosh \delta = \ln(1 + \sinh^2 \delta)`
    the logarithms to :math:`m = (p + q) / 2` are :math:`\ln(p / m) = \delta - c / 2` and
    :math:`\ln(q / m) = -\delta - c / 2`, so that, without cancellation between nearly equal p and q,

    .. math:: D = \sum \frac{p + q}{2 \ln 2} \Bigl(\delta \tanh \delta - \frac c2\Bigr), \quad
        \frac{\partial \sqrt D}{\partial x_i} = \frac{p_i}{4 \ln 2 \, \tau \sqrt D}
        \Bigl(v_i - \sum_j p_j v_j\Bigr), \quad v = \delta - \frac c2

    The forward pass computes the gradient, zero where the distance is zero, and keeps only this. Each
    level is a matrix of shape (m, n): a distribution over n elements in each row.
    """

    blockwise = True  # whether a CPU takes rows in blocks, whose temporaries fit its cache

    @staticmethod
    def forward(ctx: Any, tau: float, *levels: Tensor) -> Tensor:
        """Compute the distances of all rows; first come the student's L levels, then the teacher's."""
        students, teachers = levels[: len(levels) // 2], levels[len(levels) // 2 :]
        on_cpu = students[0].device.type == 'cpu' and not torch.compiler.is_compiling()
        if not (on_cpu and _JSDistances.blockwise):
            distances, grads = _distances(students, teachers, tau)
        else:
            found = [_in_blocks(x, y, tau) for x, y in zip(students, teachers, strict=True)]
            distances, grads = torch.cat([x for x, _ in found]), [grad for _, grad in found]
        ctx.save_for_backward(*grads)
        ctx.dtypes = [x.dtype for x in students]
        return distances

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        rows = grad_output.unsqueeze(1).split([len(x) for x in ctx.saved_tensors])
        grads = (
            (x * row).to(dtype)
            for x, row, dtype in zip(ctx.saved_tensors, rows, ctx.dtypes, strict=True)
        )
        return None, *grads, *(None for _ in ctx.dtypes)


def _in_blocks(x: Tensor, y: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Compute a level's distances and gradient some rows at a time."""
    grad = torch.empty_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
    distances, rows = [], max(BLOCK // max(x.shape[1], 1), 1)
    for *sides, out in zip(*(z.split(rows) for z in (x, y, grad)), strict=True):
        found, (block,) = _distances(*([side] for side in sides), tau)
        distances.append(found)
        out.copy_(block)
    return torch.cat(distances), grad


def _distances(
    students: Sequence[Tensor], teachers: Sequence[Tensor], tau: float
) -> tuple[Tensor, list[Tensor]]:
    """Compute the distances of all rows of all levels, and each level's gradient, in few operators."""
    interleaved = [z for pair in zip(students, teachers, strict=True) for z in pair]
    logits = torch.cat([z.flatten() for z in interleaved])
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    limit = LOGIT_LIMIT * min(tau, 1)
    logits = logits.clamp(-limit, limit).div_(tau)
    shapes = [x.shape for x in students]
    pairs = logits.split([2 * shape.numel() for shape in shapes])
    pairs = [x.view(2, *shape).log_softmax(-1) for x, shape in zip(pairs, shapes, strict=True)]
    log_p, log_q = (torch.cat([pair[side].flatten() for pair in pairs]) for side in (0, 1))

    half_limit = 2 - math.log(torch.finfo(log_p.dtype).eps) / 2  # beyond it tanh rounds to 1
    delta = (log_p - log_q).div_(2).clamp_(-half_limit, half_limit)
    c = delta.sinh().square_().log1p_()
    p, q = log_p.exp_(), log_q.exp_()
    density = delta.tanh().mul_(delta).sub_(c, alpha=0.5).mul_(q.add_(p))
    slope = delta.sub_(c, alpha=0.5).mul_(p)  # v p

    divergence, mean = (
        torch.cat([x.sum(1) for x in _by_level(flat, shapes)]) for flat in (density, slope)
    )
    distances = divergence.div_(2 * LN2).clamp_(0, 1).sqrt_()
    scale = (4 * LN2 * tau * distances).reciprocal_().masked_fill_(distances == 0, 0)
    rows = (x.unsqueeze(1).split([shape[0] for shape in shapes]) for x in (mean, scale))
    grads = _by_level(slope, shapes)
    for grad, probability, row_mean, row_scale in zip(
        grads, _by_level(p, shapes), *rows, strict=True
    ):
        grad.addcmul_(probability, row_mean, value=-1).mul_(row_scale)
    return distances, grads


def _by_level(flat: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Split joined levels."""
    levels = flat.split([shape.numel() for shape in shapes])
    return [x.view(shape) for x, shape in zip(levels, shapes, strict=True)]


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
    backbone (RT-DETRv4, https://arxiv.org/abs/2510.25257). Pixels without direction (up to 10⁻⁶ in all
    channels, as after a ReLU) have distance 1, and no gradient.

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
    if not x.numel():
        return x
    largest = x.detach().abs().amax(1, keepdim=True)
    return x / largest.where(largest > 1e-6, torch.inf)
