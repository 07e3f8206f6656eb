import math
from collections.abc import Iterable
from itertools import repeat
from typing import Any

import torch
from mmdet.registry import MODELS
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...errors import check
from .feature_loss import FeatureLoss

LOGIT_LIMIT = 1e30  # differences of two clamped logits stay finite in float32
BLOCK = 2**17  # elements per step on a CPU: the temporaries fit its cache
LN2 = math.log(2)


class _JSDistance(torch.autograd.Function):
    r"""Square root of the Jensen-Shannon divergence of softmax distributions, with its gradient.

    With :math:`\delta = \ln(p / q)`, :math:`r = (p - q) / (p + q) = \tanh(\delta / 2)` and
    :math:`\ell = \ln(1 - r^2)`, the logarithms to :math:`m = (p + q) / 2` are
    :math:`\ln(p / m) = (\ell + \delta) / 2` and :math:`\ln(q / m) = (\ell - \delta) / 2`, so that

    .. math:: D = \sum \frac{p + q}{4 \ln 2} (r \delta + \ell), \quad
        \frac{\partial \sqrt D}{\partial x_i} = \frac{p_i}{8 \ln 2 \, \tau \sqrt D}
        \Bigl(\ell_i + \delta_i - \sum_j p_j (\ell_j + \delta_j)\Bigr)

    Near p = q the forms :math:`|r| = e / (e + 2)` and :math:`\ell = -\ln(1 + \tfrac14 e^2 / (e + 1))`,
    with :math:`e = e^{|\delta|} - 1`, avoid cancellation.

    The forward pass computes the gradient and keeps this one map; it is zero where the distance is.
    Maps have the shape (groups, n, inner): one distribution over n per group and inner index.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, tau: float) -> Tensor:
        dtype = torch.promote_types(student.dtype, torch.float32)
        maps = [student, teacher]
        maps += [
            torch.empty_like(x, dtype=dtype) if needed else None
            for x, needed in zip(maps, ctx.needs_input_grad, strict=False)
        ]
        in_blocks = student.device.type == 'cpu' and not torch.compiler.is_compiling()
        block = BLOCK if in_blocks else student.numel()
        _, size, inner = student.shape
        groups = max(block // (size * inner), 1)
        rows = max(block // (groups * inner), 1)
        pieces = zip(*(_split(x, groups, 0) for x in maps), strict=False)
        distances = torch.cat([_distances(*piece, tau, rows) for piece in pieces])
        ctx.save_for_backward(*maps[2:])
        ctx.dtypes = student.dtype, teacher.dtype
        return distances

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        grads = [
            None if x is None else (grad_output * x).to(dtype)
            for x, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return grads[0], grads[1], None


def _distances(
    x: Tensor, y: Tensor, grad_x: Tensor | None, grad_y: Tensor | None, tau: float, rows: int
) -> Tensor:
    """Compute distances, (groups, 1, inner), ``rows`` at a time; fill gradients that are not None."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    limit = 4 - math.log(torch.finfo(dtype).eps)  # of |δ|: beyond it r rounds to 1
    logit_limit = LOGIT_LIMIT * min(tau, 1)

    def logits(part: Tensor) -> Tensor:
        return part.to(dtype).clamp(-logit_limit, logit_limit)

    def powers(part: Tensor, top: Tensor) -> Tensor:
        return (logits(part) - top).div_(LN2 * tau).exp2_()  # on a CPU exp2 is faster than exp

    def total(part: Tensor) -> Tensor:
        return part.sum(1, keepdim=True)

    top_x, top_y = (logits(z.amax(1, keepdim=True)) for z in (x, y))
    sum_x = sum(total(powers(part, top_x)) for part in _split(x, rows, 1))
    sum_y = sum(total(powers(part, top_y)) for part in _split(y, rows, 1))
    top_diff, log_ratio = top_x - top_y, torch.log1p((sum_x - sum_y) / sum_y)

    divergence = mean_x = mean_y = 0
    parts = (_split(z, rows, 1) for z in (x, y, grad_x, grad_y))
    for part_x, part_y, out_x, out_y in zip(*parts, strict=False):
        delta = (logits(part_x) - logits(part_y)).sub_(top_diff).div_(tau).sub_(log_ratio)
        delta.clamp_(-limit, limit)
        size = delta.abs()
        e = size.expm1()
        log = (e / (e + 1)).mul_(e).div_(4).log1p_().neg_()  # ℓ
        density = torch.addcmul(log, size, e.div_(e + 2))
        p, q = powers(part_x, top_x).div_(sum_x), powers(part_y, top_y).div_(sum_y)
        divergence = divergence + total(density.mul_(p + q))
        if out_x is not None:
            mean_x = mean_x + total(out_x.copy_(p.mul_(log + delta)))
        if out_y is not None:
            mean_y = mean_y + total(out_y.copy_(q.mul_(log - delta)))

    distances = (divergence / (4 * LN2)).clamp_(0, 1).sqrt_()
    scale = torch.where(distances > 0, 1 / (8 * LN2 * tau * distances), 0)
    for z, grad, top, weight in (
        (x, grad_x, top_x, mean_x / sum_x),
        (y, grad_y, top_y, mean_y / sum_y),
    ):
        if grad is not None:
            for part, out in zip(_split(z, rows, 1), _split(grad, rows, 1), strict=True):
                out.addcmul_(powers(part, top), weight, value=-1).mul_(scale)
    return distances


def _split(x: Tensor | None, size: int, dim: int) -> Iterable[Tensor | None]:
    return repeat(None) if x is None else x.split(size, dim)


def js_distance(student: Tensor, teacher: Tensor, dim: str = 'spatial', tau: float = 1.0) -> Tensor:
    r"""Jensen-Shannon distances between the softmax distributions of two feature maps.

    .. math:: \sqrt{D_{JS}(P \| Q)}, \quad D_{JS} = \tfrac12 D_{KL}(P \| M)
        + \tfrac12 D_{KL}(Q \| M), \quad M = \tfrac12 (P + Q)

    with :math:`P = \mathrm{softmax}(x / \tau)` and logarithms to base 2, so that each distance is a
    metric in [0, 1] (SSSD, https://arxiv.org/abs/2303.05015, which leaves the distributions open).

    Args:
        student: Map of shape (B, C, h, w).
        teacher: Map of the same shape.
        dim: Axis of a distribution: ``'spatial'`` (one per channel, over h·w), ``'channel'`` (one per
            pixel, over C) or ``'all'`` (one per image, over C·h·w).
        tau: Temperature of the softmax, > 0.

    Returns:
        The distances in float32 or wider, of shape (B, C), (B, h, w) or (B,). Distances and gradients
        are finite for any finite maps; between equal maps the gradient is 0.

    Example:
        >>> js_distance(torch.tensor([[[[50., 0.]]]]), torch.tensor([[[[0., 50.]]]]))
        tensor([[1.]])
    """
    batch, channels, height, width = student.shape
    shape = {'spatial': (batch, channels), 'channel': (batch, height, width), 'all': (batch,)}[dim]
    if not student.numel():
        return student.to(torch.promote_types(student.dtype, torch.float32)).sum().expand(shape)
    pixels = height * width
    if _is_channels_last(student):
        student, teacher = (x.permute(0, 2, 3, 1) for x in (student, teacher))
        groups = {'spatial': (batch, pixels, channels), 'channel': (batch * pixels, channels, 1)}
    else:
        groups = {'spatial': (batch * channels, pixels, 1), 'channel': (batch, channels, pixels)}
    groups['all'] = (batch, channels * pixels, 1)
    maps = (x.contiguous().view(groups[dim]) for x in (student, teacher))
    return _JSDistance.apply(*maps, tau).view(shape)


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


@MODELS.register_module()
class JSDistanceLoss(FeatureLoss):
    r"""SSSD's distillation loss: the Jensen-Shannon distance, averaged over levels.

    .. math:: \frac{1}{N} \sum_{p=1}^{N} \operatorname{mean} \sqrt{D_{JS}(P_p \| Q_p)}

    over N levels; see :func:`js_distance` for the distributions. The loss is in [0, 1].

    Args:
        dim: Axis of a distribution: ``'spatial'``, ``'channel'`` or ``'all'``. Defaults to
            ``'spatial'``.
        tau: Temperature of the softmax, > 0. Defaults to 1.

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

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the mean distance between two maps of shape (B, C, h, w), a scalar in [0, 1]."""
        distances = js_distance(student, teacher, self.dim, self.tau)
        return distances.sum() / max(distances.numel(), 1)
