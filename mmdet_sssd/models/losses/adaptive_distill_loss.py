import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor

from ...errors import check
from .chunked import sum_of_chunks

CHUNK = 2**22  # elements processed at a time; the size of the temporaries
LOGIT_OF_NONE = -1e4  # on both sides: probabilities of 0, and so no loss
CPU_CHUNK = 2**17  # the temporaries fit a CPU's cache


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


@MODELS.register_module()
class AdaptiveDistillLoss(nn.Module):
    r"""SAD's loss between classification logits, as independent sigmoids.

    .. math:: \frac{1}{\max(1, \sum q^\theta)} \sum \left(1 - e^{-DL}\right)^\gamma
        \left[-\alpha q \log p - (1 - \alpha)(1 - q) \log(1 - p)\right],
        \quad DL = KL(q \| p) + \beta T(q)

    over elements with the student's probability p, the teacher's q and its entropy T(q) (SAD,
    https://arxiv.org/abs/1901.00366). The weight is large where the teacher is uncertain or far from
    the student, and gradients flow through it. Teacher and normaliser get none.

    Args:
        alpha: Weight α of the positives' part, in [0, 1]. Defaults to 0.5.
        beta: Weight β of the teacher's uncertainty, >= 0. With 1, the default, DL is the cross-entropy.
        gamma: Exponent γ of the adaptive weight, 0 or >= 1; in between, the gradient would be unbounded
            where p = q. Defaults to 2.
        theta: Exponent θ of the normaliser, > 0. Defaults to 1.8.

    Raises:
        ConfigError: if an argument is out of range.

    Example:
        >>> loss = AdaptiveDistillLoss()
        >>> loss(torch.tensor([0., -9.]), torch.tensor([0., -9.]))
        tensor(0.0866)
        >>> student, teacher = torch.randn(2, 100, 80), torch.randn(2, 100, 80)
        >>> valid = torch.ones(2, 100, 1, dtype=torch.bool)
        >>> positives = soft_positive_count(teacher, valid, loss.theta)  # average it over processes
        >>> loss(student, teacher, valid, avg_factor=positives).shape
        torch.Size([])
    """

    def __init__(
        self, alpha: float = 0.5, beta: float = 1.0, gamma: float = 2.0, theta: float = 1.8
    ) -> None:
        super().__init__()
        check('alpha', alpha, 0 <= alpha <= 1, 'a number in [0, 1]')
        check('beta', beta, 0 <= beta < math.inf, 'a number >= 0')
        check('gamma', gamma, gamma == 0 or 1 <= gamma < math.inf, '0 or a number >= 1')
        check('theta', theta, 0 < theta < math.inf, 'a number > 0')
        self.alpha, self.beta, self.gamma, self.theta = alpha, beta, gamma, theta

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        mask: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
    ) -> Tensor:
        """Compute the loss.

        Args:
            student: The student's logits, of any shape.
            teacher: The teacher's logits, of the same shape.
            mask: Boolean tensor that broadcasts to that shape, true for counted elements. None: all.
            avg_factor: Replaces Σ q^θ in the normaliser max(1, ·), for callers that sum over levels or
                average over processes; see :func:`soft_positive_count`.

        Returns:
            A scalar >= 0 in float32 or wider, with a finite gradient for finite logits.

        Raises:
            ValueError: if the shapes of student and teacher differ.
        """
        if student.shape != teacher.shape:
            shapes = f'{tuple(student.shape)} (student) and {tuple(teacher.shape)} (teacher)'
            raise ValueError(f'the logits have shapes {shapes}; accepted: equal shapes')
        if avg_factor is None:
            avg_factor = soft_positive_count(teacher, mask, self.theta)
        counts = student.new_ones((), dtype=torch.bool) if mask is None else mask
        ignored = ~counts.expand_as(student).reshape(-1)
        dtype = torch.promote_types(student.dtype, torch.float32)
        z, t = (x.to(dtype).reshape(-1) for x in (student, teacher))
        total = sum_of_chunks(self._sum, CPU_CHUNK if z.is_cpu else CHUNK, z, t, ignored)
        normaliser = torch.as_tensor(avg_factor, dtype=dtype, device=total.device)
        return total / normaliser.detach().clamp(min=1)

    def _sum(self, z: Tensor, t: Tensor, ignored: Tensor) -> Tensor:
        """Sum the losses of elements that count, given both sides' logits."""
        z, t = (x.masked_fill(ignored, LOGIT_OF_NONE) for x in (z, t))
        q, not_q = t.sigmoid(), t.neg().sigmoid()
        positive, negative = -q * F.logsigmoid(z), -not_q * F.logsigmoid(-z)  # of the cross-entropy
        distance = positive + negative
        if self.beta != 1:
            entropy = -q * F.logsigmoid(t) - not_q * F.logsigmoid(-t)
            distance = (distance + (self.beta - 1) * entropy).clamp(min=0)  # rounding
        weight = (-torch.expm1(-distance)) ** self.gamma
        return (weight * (self.alpha * positive + (1 - self.alpha) * negative)).sum()
