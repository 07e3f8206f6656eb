import math
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...errors import check

CHUNK = 2**22  # elements processed at a time; the size of the temporaries
CPU_CHUNK = 2**17  # the temporaries fit a CPU's cache


class _AdaptiveDistillSum(torch.autograd.Function):
    """Sum of the elements' losses, with its gradient.

    Automatic differentiation would keep ten maps of the logits' size or, with activation
    checkpointing, take twice the time. Here the forward pass computes the gradient and keeps only it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        ignored: Tensor,
        alpha: float,
        beta: float,
        gamma: float,
    ) -> Tensor:
        total = student.new_zeros(())
        grad = torch.empty_like(student)
        size = CPU_CHUNK if student.device.type == 'cpu' else CHUNK
        for z, t, skip, out in zip(
            *(x.split(size) for x in (student, teacher, ignored, grad)), strict=True
        ):
            loss = _elements(z, t, alpha, beta, gamma, grad=out)
            total += loss.masked_fill_(skip, 0).sum()
            out.masked_fill_(skip, 0)
        ctx.save_for_backward(grad)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return grad_output * grad, None, None, None, None, None


def _elements(
    z: Tensor, t: Tensor, alpha: float, beta: float, gamma: float, grad: Tensor
) -> Tensor:
    """Compute each element's loss, and write its derivative with respect to ``z`` to ``grad``."""
    log_p, log_not_p = F.logsigmoid(z), F.logsigmoid(-z)
    q, not_q = t.sigmoid(), t.neg().sigmoid_()
    positive, negative = log_p * -q, log_not_p * -not_q  # both parts of the cross-entropy
    distance = positive + negative
    if beta != 1:
        distance.add_(_entropy(t, q, not_q), alpha=beta - 1).clamp_(min=0)  # rounding
    cross_entropy = positive.mul_(alpha).add_(negative, alpha=1 - alpha)
    miss = torch.expm1(-distance).neg_()
    weight = miss**gamma

    false_positive = log_p.exp_().mul_(not_q)  # p (1 - q)
    false_negative = log_not_p.exp_().mul_(q)  # (1 - p) q
    slope = miss.pow_(max(gamma - 1, 0)).mul_(gamma).mul_(distance.neg_().exp_())
    torch.mul(false_positive - false_negative, slope.mul_(cross_entropy), out=grad)
    grad.addcmul_(weight, false_positive, value=1 - alpha)
    grad.addcmul_(weight, false_negative, value=-alpha)
    return weight.mul_(cross_entropy)


def _entropy(t: Tensor, q: Tensor, not_q: Tensor) -> Tensor:
    """Compute the entropy T(q) of q = σ(t), with 0 log 0 = 0."""
    return (q * F.logsigmoid(t)).addcmul_(not_q, F.logsigmoid(-t)).neg_()


def soft_positive_count(teacher: Tensor, mask: Tensor | None = None, theta: float = 1.8) -> Tensor:
    r"""Sum of :math:`q^\theta` over the counted elements: a soft count of the teacher's positives.

    Args:
        teacher: The teacher's logits, of any shape; q is their sigmoid.
        mask: Boolean tensor that broadcasts to that shape, true for counted elements. None: all.
        theta: Exponent θ, > 0; the larger it is, the less uncertain elements count.

    Returns:
        A scalar in float32 or wider, without gradient.
    """
    logits = teacher.detach().to(torch.promote_types(teacher.dtype, torch.float32))
    powers = logits.sigmoid().pow_(theta)
    return powers.sum() if mask is None else powers.masked_fill_(~mask, 0).sum()


def adaptive_distill_loss(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    alpha: float = 0.5,
    beta: float = 1.0,
    gamma: float = 2.0,
    theta: float = 1.8,
    avg_factor: float | Tensor | None = None,
) -> Tensor:
    r"""Adaptive distillation loss between the logits of independent sigmoids.

    .. math:: \frac{1}{\max(1, \sum q^\theta)} \sum \left(1 - e^{-DL}\right)^\gamma
        \left[-\alpha q \log p - (1 - \alpha)(1 - q) \log(1 - p)\right],
        \quad DL = KL(q \| p) + \beta T(q)

    over elements with the student's probability p, the teacher's q and its entropy T(q) (SAD,
    https://arxiv.org/abs/1901.00366). The weight is large where the teacher is uncertain or far from
    the student, and gradients flow through it. Teacher and normaliser get none.

    Args:
        student: The student's logits, of any shape.
        teacher: The teacher's logits, of the same shape.
        mask: Boolean tensor that broadcasts to that shape, true for counted elements. None: all.
        alpha: Weight α of the positives' part, in [0, 1].
        beta: Weight β of the teacher's uncertainty, >= 0. With 1, DL is the cross-entropy.
        gamma: Exponent γ, 0 or >= 1; in between, the gradient would be unbounded where p = q.
        theta: Exponent θ of the normaliser, > 0.
        avg_factor: Replaces Σ q^θ in the normaliser max(1, ·), for callers that sum over levels or
            average over processes; see :func:`soft_positive_count`.

    Returns:
        A scalar >= 0 in float32 or wider, with a finite gradient for finite logits.

    Raises:
        ValueError: if the shapes of student and teacher differ.

    Example:
        >>> adaptive_distill_loss(torch.tensor([0., -9.]), torch.tensor([0., -9.]))
        tensor(0.0866)
    """
    if student.shape != teacher.shape:
        shapes = f'{tuple(student.shape)} (student) and {tuple(teacher.shape)} (teacher)'
        raise ValueError(f'the logits have shapes {shapes}; accepted: equal shapes')
    if avg_factor is None:
        avg_factor = soft_positive_count(teacher, mask, theta)
    counts = student.new_ones((), dtype=torch.bool) if mask is None else mask
    ignored = ~counts.expand_as(student).reshape(-1)
    dtype = torch.promote_types(student.dtype, torch.float32)
    z, t = (x.to(dtype).reshape(-1) for x in (student, teacher.detach()))
    total = _AdaptiveDistillSum.apply(z, t, ignored, alpha, beta, gamma)
    normaliser = torch.as_tensor(avg_factor, dtype=dtype, device=total.device).detach().clamp(min=1)
    return total / normaliser


@MODELS.register_module()
class AdaptiveDistillLoss(nn.Module):
    """SAD's loss between classification logits; see :func:`adaptive_distill_loss`.

    Args:
        alpha: Weight α of the positives' part, in [0, 1]. Defaults to 0.5.
        beta: Weight β of the teacher's uncertainty, >= 0. Defaults to 1.
        gamma: Exponent γ of the adaptive weight, 0 or >= 1. Defaults to 2.
        theta: Exponent θ of the normaliser, > 0. Defaults to 1.8.

    Raises:
        ConfigError: if an argument is out of range.

    Example:
        >>> loss = AdaptiveDistillLoss()
        >>> student, teacher = torch.randn(2, 100, 80), torch.randn(2, 100, 80)
        >>> valid = torch.ones(2, 100, 1, dtype=torch.bool)
        >>> positives = soft_positive_count(teacher, valid, loss.theta)  # average it over processes
        >>> loss(student, teacher, valid, avg_factor=positives).shape
        torch.Size([])
    """

    def __init__(
        self,
        alpha: float = 0.5,
        beta: float = 1.0,
        gamma: float = 2.0,
        theta: float = 1.8,
    ) -> None:
        super().__init__()
        check('alpha', alpha, 0 <= alpha <= 1, 'a number in [0, 1]')
        check('beta', beta, 0 <= beta < math.inf, 'a number >= 0')
        check('gamma', gamma, gamma == 0 or 1 <= gamma < math.inf, '0 or a number >= 1')
        check('theta', theta, 0 < theta < math.inf, 'a number > 0')
        self.alpha = alpha
        self.beta = beta
        self.gamma = gamma
        self.theta = theta

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        mask: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
    ) -> Tensor:
        """Compute :func:`adaptive_distill_loss` of these arguments."""
        return adaptive_distill_loss(
            student_logits,
            teacher_logits,
            mask,
            alpha=self.alpha,
            beta=self.beta,
            gamma=self.gamma,
            theta=self.theta,
            avg_factor=avg_factor,
        )
