import math
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...errors import ConfigError
from .feature_loss import FeatureLoss

LOGIT_LIMIT = 1e30  # differences of two clamped logits stay finite in float32
SERIES_LIMIT = 0.1  # below it the series of `_divergence_density` is exact to float32


class _JSDistance(torch.autograd.Function):
    """Square root of the Jensen-Shannon divergence of softmax distributions, with its gradient.

    The root's derivative is infinite where both distributions are equal, and automatic
    differentiation would keep about ten maps per level alive. Here the gradient is worked out in the
    forward pass, one map per side that needs it, and is zero where the distance is.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, dim: int) -> Tensor:
        log_p, log_q = F.log_softmax(student, dim), F.log_softmax(teacher, dim)
        ratio = _relative_difference(log_p, log_q)
        p, q = log_p.exp_(), log_q.exp_()
        log_p_m, log_q_m = torch.log1p(ratio), torch.log1p(-ratio)  # of p / m and q / m
        density = _divergence_density(ratio, log_p_m, log_q_m).mul_(p + q)
        distance = (density.sum(dim, keepdim=True) / (4 * math.log(2))).clamp_(0, 1).sqrt_()
        ctx.save_for_backward(
            _distance_gradient(p, log_p_m, distance, dim) if ctx.needs_input_grad[0] else None,
            _distance_gradient(q, log_q_m, distance, dim) if ctx.needs_input_grad[1] else None,
        )
        ctx.dim = dim
        return distance.squeeze(dim)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        grad_output = grad_output.unsqueeze(ctx.dim)
        grads = [None if grad is None else grad_output * grad for grad in ctx.saved_tensors]
        return grads[0], grads[1], None


def _relative_difference(log_p: Tensor, log_q: Tensor) -> Tensor:
    """(p - q) / (p + q), also where both underflow, and strictly between -1 and 1."""
    limit = 1 - torch.finfo(log_p.dtype).eps / 2
    return (log_p - log_q).div_(2).tanh_().clamp_(-limit, limit)


def _divergence_density(r: Tensor, log_1_plus_r: Tensor, log_1_minus_r: Tensor) -> Tensor:
    """(1 + r) ln(1 + r) + (1 - r) ln(1 - r), without cancellation at 0."""
    r2 = r.square()
    series = (r2 / 28).add_(1 / 15).mul_(r2).add_(1 / 6).mul_(r2).add_(1).mul_(r2)
    exact = torch.addcmul(log_1_plus_r + log_1_minus_r, r, log_1_plus_r - log_1_minus_r)
    return torch.where(r2 < SERIES_LIMIT**2, series, exact)


def _distance_gradient(p: Tensor, log_p_m: Tensor, distance: Tensor, dim: int) -> Tensor:
    """Gradient of the distance with respect to the logits of ``p``; ``log_p_m`` is ln(p / m)."""
    grad = p * log_p_m
    grad = torch.addcmul(grad, p, grad.sum(dim, keepdim=True), value=-1)
    scale = torch.where(distance > 0, 1 / (4 * math.log(2) * distance), 0)
    return grad.mul_(scale)


def js_distance(student: Tensor, teacher: Tensor, dim: str = 'spatial', tau: float = 1.0) -> Tensor:
    r"""Jensen-Shannon distances between the softmax distributions of two feature maps.

    .. math:: \sqrt{D_{JS}(P \| Q)}, \quad D_{JS} = \tfrac12 D_{KL}(P \| M)
        + \tfrac12 D_{KL}(Q \| M), \quad M = \tfrac12 (P + Q)

    with :math:`P = \mathrm{softmax}(x / \tau)` and logarithms to base 2, so that each distance is a
    metric in [0, 1] (SSSD, https://arxiv.org/abs/2303.05015, which leaves the distributions open).

    Args:
        student: Map of shape (B, C, h, w).
        teacher: Map of the same shape.
        dim: What one distribution runs over: ``'spatial'`` (one per channel, over h·w),
            ``'channel'`` (one per pixel, over C) or ``'all'`` (one per image, over C·h·w).
        tau: Temperature of the softmax, > 0.

    Returns:
        The distances in float32 or wider, of shape (B, C), (B, h, w) or (B,). Both they and their
        gradients are finite for any finite maps, equal ones too (where the gradient is 0).

    Example:
        >>> js_distance(torch.tensor([[[[50., 0.]]]]), torch.tensor([[[[0., 50.]]]]))
        tensor([[1.]])
    """
    dtype = torch.promote_types(student.dtype, torch.float32)

    def logits(x: Tensor) -> Tensor:
        x = (x.to(dtype) / tau).clamp(-LOGIT_LIMIT, LOGIT_LIMIT)
        return {'spatial': x.flatten(2), 'channel': x, 'all': x.flatten(1)}[dim]

    return _JSDistance.apply(logits(student), logits(teacher), 1 if dim == 'channel' else -1)


@MODELS.register_module()
class JSDistanceLoss(FeatureLoss):
    r"""SSSD's distillation loss: the Jensen-Shannon distance, averaged over levels.

    .. math:: \frac{w}{N} \sum_{p=1}^{N} \operatorname{mean} \sqrt{D_{JS}(P_p \| Q_p)}

    over N levels; see :func:`js_distance` for the distributions. The loss is in [0, ``loss_weight``].

    Args:
        dim: What one distribution runs over: ``'spatial'``, ``'channel'`` or ``'all'``. Defaults to
            ``'spatial'``.
        tau: Temperature of the softmax, > 0. Defaults to 1.
        loss_weight: Factor of the loss, >= 0. Defaults to 1.

    Raises:
        ConfigError: if an argument is not one of these.

    Example:
        >>> loss = JSDistanceLoss(dim='channel')
        >>> feats = [torch.rand(2, 8, 16, 16), torch.rand(2, 8, 8, 8)]
        >>> loss(feats, feats)
        tensor(0.)
    """

    DIMS = ('spatial', 'channel', 'all')
    default_coef = 10.0

    def __init__(self, dim: str = 'spatial', tau: float = 1.0, loss_weight: float = 1.0) -> None:
        super().__init__(loss_weight)
        if dim not in self.DIMS:
            raise ConfigError(f'distill_loss.dim is {dim!r}; accepted: {", ".join(self.DIMS)}')
        if not 0 < tau < math.inf:
            raise ConfigError(f'distill_loss.tau is {tau!r}; accepted: a number > 0')
        self.dim = dim
        self.tau = tau

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the mean distance of two maps of shape (B, C, h, w), a scalar in [0, 1]."""
        distances = js_distance(student, teacher, self.dim, self.tau)
        return distances.sum() / max(distances.numel(), 1)
