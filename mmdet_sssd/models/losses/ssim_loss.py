import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input

from ...errors import check
from .feature_loss import FeatureLoss

WINDOW_SIZE, SIGMA = 11, 1.5  # pixels
C1, C2 = 0.01**2, 0.03**2  # (k1 L)² and (k2 L)² for L = 1
VALUE_LIMIT = 1e15  # products of two clamped values stay finite in float32
SMALLEST_RANGE = 1e-12  # a map that spans less counts as constant
CHUNK = 2**22  # elements per step, or one image; the size of the temporaries


class _SSIM(torch.autograd.Function):
    """Mean SSIM of each channel, with its gradient.

    Automatic differentiation would keep seventeen maps per level or, with activation checkpointing,
    take more than twice the time. Here the forward pass computes the gradient, some images at a time,
    and keeps one map for each side that needs it.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        sides = (student, teacher)
        values = student.new_empty(student.shape[:2])
        grads = [
            torch.empty_like(x) if needed else None
            for x, needed in zip(sides, ctx.needs_input_grad, strict=True)
        ]
        step = max(CHUNK // max(student[:1].numel(), 1), 1)
        for start in range(0, len(student), step):
            images = slice(start, start + step)
            values[images], *parts = _ssim_with_gradients(
                *(x[images].clamp(-VALUE_LIMIT, VALUE_LIMIT) for x in sides), ctx.needs_input_grad
            )
            for grad, part in zip(grads, parts, strict=True):
                if grad is not None:
                    grad[images] = part
        ctx.save_for_backward(*grads)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None]:
        grad_output = grad_output[..., None, None]
        grads = [None if grad is None else grad_output * grad for grad in ctx.saved_tensors]
        return grads[0], grads[1]


def _ssim_with_gradients(
    x: Tensor, y: Tensor, needed: Sequence[bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Compute each channel's mean SSIM, and its gradients by x and y if needed.

    Luminance and contrast·structure are written as 1 - (square of a difference) / (sum of squares):
    the same as in the paper, without cancellation between nearly equal maps.
    """
    diff, window = x - y, _gaussian_window(x)
    mean_x, mean_y, mean_diff = (_smooth(z, window) for z in (x, y, diff))
    energy = mean_x.square().addcmul_(mean_y, mean_y)
    variance, variance_diff = _variances(x, y, diff, energy, mean_diff, window)
    energy.add_(C1)
    variance.add_(C2)
    lack_l = mean_diff.square().div_(energy)  # 1 - luminance
    lack_cs = variance_diff.div_(variance)  # 1 - contrast·structure
    luminance, structure = 1 - lack_l, 1 - lack_cs
    value = (luminance * structure).mean((2, 3))

    # the gradient sums these factors times the derivatives of means, squares and difference
    scale = 2 / math.prod(lack_l.shape[2:])
    by_l, by_cs = structure.div_(energy).mul_(scale), luminance.div_(variance).mul_(scale)
    by_mean = (lack_l * by_l).addcmul_(lack_cs, by_cs, value=-1)
    by_mean_diff = mean_diff.mul_(by_cs - by_l)
    by_square = _spread(lack_cs.mul_(by_cs), window)
    by_diff = diff.mul_(_spread(by_cs, window))

    def gradient(z: Tensor, mean: Tensor, sign: int) -> Tensor:
        through_means = mean.mul_(by_mean).add_(by_mean_diff, alpha=sign)
        return _spread(through_means, window).addcmul_(z, by_square).sub_(by_diff, alpha=sign)

    return (
        value,
        gradient(x, mean_x, 1) if needed[0] else None,
        gradient(y, mean_y, -1) if needed[1] else None,
    )


def _variances(
    x: Tensor, y: Tensor, diff: Tensor, energy: Tensor, mean_diff: Tensor, window: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the summed variances of x and y, and the variance of x - y, in each window.

    Despite rounding, neither is negative, and the second is at most twice the first.
    """
    total = _smooth(x.square().addcmul_(y, y), window).sub_(energy)
    total = torch.maximum(total, torch.finfo(x.dtype).eps * energy)
    of_diff = _smooth(diff.square(), window).addcmul_(mean_diff, mean_diff, value=-1)
    return total, torch.minimum(of_diff.clamp_(min=0), 2 * total)


def _gaussian_window(x: Tensor) -> Tensor:
    """Compute one axis of the window for maps of shape (B, C, h, w), shorter for small maps."""
    size = min(WINDOW_SIZE, *x.shape[2:])
    radius = (size - 1) // 2
    offsets = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    return torch.softmax(-offsets.square() / (2 * SIGMA**2), 0)


def _smooth(x: Tensor, window: Tensor) -> Tensor:
    """Average over the windows within the maps, (B, C, h, w) -> (B, C, h - 2r, w - 2r).

    r is the window's radius. On a GPU, contiguous float32 maps of several channels use PyTorch's own
    depthwise kernel, which does not round to TF32; that would spoil the variances.
    """
    for weight in _depthwise_weights(x, window):
        x = F.conv2d(x, weight, groups=x.shape[1])
    return x


def _spread(x: Tensor, window: Tensor) -> Tensor:
    """Distribute each window's value over its pixels: the transpose of :func:`_smooth`.

    (Computed as a backward pass; a transposed convolution could round to TF32.)
    """
    for weight in _depthwise_weights(x, window):
        grown = [n + k - 1 for n, k in zip(x.shape[2:], weight.shape[2:], strict=True)]
        x = conv2d_input((*x.shape[:2], *grown), weight, x, groups=x.shape[1])
    return x


def _depthwise_weights(x: Tensor, window: Tensor) -> tuple[Tensor, Tensor]:
    """Expand the window to kernels of shape (C, 1, k, 1) and (C, 1, 1, k)."""
    weight = window.expand(x.shape[1], 1, -1)
    return weight.unsqueeze(-1), weight.unsqueeze(-2)


def ssim(student: Tensor, teacher: Tensor, data_range: float | None = None) -> Tensor:
    r"""Structural similarity of each channel of two feature maps, averaged over windows.

    .. math:: \mathrm{SSIM} = l \cdot c \cdot s = \frac{2 \mu_x \mu_y + c_1}{\mu_x^2 + \mu_y^2 + c_1}
        \cdot \frac{2 \sigma_{xy} + c_2}{\sigma_x^2 + \sigma_y^2 + c_2}

    with the means, variances and covariance under a Gaussian window of 11×11 pixels (σ = 1.5),
    :math:`c_1 = (0.01 L)^2`, :math:`c_2 = (0.03 L)^2` and the dynamic range L (Structural KD,
    https://arxiv.org/abs/2211.13133; its exponents are 1 and its :math:`c_3` is :math:`c_2 / 2`).

    Borders: only windows within the map count, without padding. Pixels near the border lie in fewer
    windows and weigh less. On maps smaller than 11 pixels the window is square and has the largest odd
    size that fits (same σ); at a height or width of one pixel only the means remain.

    Range: without ``data_range``, L = 1 and both maps are shifted and scaled alike, per image, so that
    the teacher's values over all channels and pixels span [0, 1]. A constant teacher becomes 0, and
    the student is shifted alike, unscaled. With ``data_range`` nothing is shifted. SSIM is meant for
    values >= 0: where both means and the correlation have opposite signs, as with the negated
    teacher's map, it rises to 1 again.

    Args:
        student: Map of shape (B, C, h, w), not empty.
        teacher: Map of the same shape.
        data_range: L, > 0, in the unit of the maps.

    Returns:
        Values in [-1, 1] in float32 or wider (also under autocast), of shape (B, C). Values and
        gradients are finite for any finite maps, and 1 and 0 for equal maps.

    Example:
        >>> x = torch.arange(256.).view(1, 1, 16, 16)
        >>> ssim(x, x), ssim(x, x.flip(-1)) < 1
        (tensor([[1.]]), tensor([[True]]))
    """
    dtype = torch.promote_types(student.dtype, torch.float32)
    x, y = student.to(dtype).contiguous(), teacher.to(dtype).contiguous()
    if data_range is None:
        low, span = _range_per_image(y)
        x, y = (x - low).div_(span), (y - low).div_(span)
    else:
        x, y = x / data_range, y / data_range
    with torch.autocast(x.device.type, enabled=False):
        return _SSIM.apply(x, y)


def _range_per_image(x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute each image's minimum and range (1 if constant), of shape (B, 1, 1, 1)."""
    limit = torch.finfo(x.dtype).max / 4  # keeps the range finite
    low = x.amin((1, 2, 3), keepdim=True).clamp(-limit, limit)
    span = x.amax((1, 2, 3), keepdim=True).clamp(-limit, limit) - low
    return low, torch.where(span > SMALLEST_RANGE, span, 1)


@MODELS.register_module()
class SSIMLoss(FeatureLoss):
    r"""Structural KD's distillation loss: structural dissimilarity, averaged over levels.

    .. math:: \frac{1}{N} \sum_{p=1}^{N} \frac{1 - \operatorname{mean} \mathrm{SSIM}(x_p, t_p)}{2}

    over N levels; the mean is over images, channels and windows; see :func:`ssim` for windows, borders
    and ranges. The loss is in [0, 1].

    :class:`~mmdet_sssd.models.SSSDDistiller` instance-normalises both sides first, which removes each
    channel's mean and scale; luminance and contrast then compare their local variations. This loss
    also rescales both sides by the teacher's range, so that the teacher's values are >= 0, as SSIM
    expects.

    Args:
        data_range: Dynamic range L of the maps, > 0; None uses the range of the teacher's map, per
            image. Defaults to None.

    Raises:
        ConfigError: if ``data_range`` is not positive.

    Example:
        >>> feats = [torch.rand(2, 8, 16, 16), torch.rand(2, 8, 5, 8)]
        >>> SSIMLoss()(feats, feats)
        tensor(0.)
    """

    def __init__(self, data_range: float | None = None) -> None:
        super().__init__()
        check(
            'data_range',
            data_range,
            data_range is None or 0 < data_range < math.inf,
            "a number > 0, or None for the range of the teacher's map",
        )
        self.data_range = data_range

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute (1 - mean SSIM) / 2 between two maps of shape (B, C, h, w), a scalar in [0, 1]."""
        if not student.numel():
            return student.to(torch.promote_types(student.dtype, torch.float32)).sum()
        return (1 - ssim(student, teacher, self.data_range).mean()) / 2
