import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor

from .chunked import sum_of_chunks
from .feature_losses import FeatureLoss

WINDOW_SIZE, SIGMA = 11, 1.5  # pixels
C1, C2 = 0.01**2, 0.03**2  # (k1 L)² and (k2 L)² for L = 1
VALUE_LIMIT = 1e15  # products of two clamped values stay finite in float32
SMALLEST_RANGE = 1e-12  # a map that spans less counts as constant
CHUNK = 2**22  # elements at a time; the size of the temporaries
CPU_CHUNK = 2**18  # the temporaries fit a CPU's cache


def ssim(x: Tensor, y: Tensor) -> Tensor:
    r"""Structural similarity of maps with values in [0, 1], averaged over windows.

    .. math:: \mathrm{SSIM} = l \cdot c \cdot s = \frac{2 \mu_x \mu_y + c_1}{\mu_x^2 + \mu_y^2 + c_1}
        \cdot \frac{2 \sigma_{xy} + c_2}{\sigma_x^2 + \sigma_y^2 + c_2}

    with the means, variances and covariance under a Gaussian window of 11×11 pixels (σ = 1.5),
    :math:`c_1 = 0.01^2` and :math:`c_2 = 0.03^2` (Structural KD, https://arxiv.org/abs/2211.13133; its
    exponents are 1 and its :math:`c_3` is :math:`c_2 / 2`). Both factors are computed as 1 - (square
    of a difference) / (sum of squares), without cancellation between nearly equal maps.

    Borders: only windows within the map count, without padding. Pixels near the border lie in fewer
    windows and weigh less. On maps smaller than 11 pixels the window is square and has the largest odd
    size that fits (same σ); at a height or width of one pixel only the means remain.

    SSIM is meant for values >= 0: where both means and the correlation have opposite signs, as with the
    negated teacher's map, it rises to 1 again.

    Args:
        x: Maps of shape (N, h, w), not empty, in float32 or wider.
        y: Maps of the same shape and type.

    Returns:
        Values in [-1, 1], of shape (N,). Values and gradients are finite for any finite maps, and 1
        and 0 for equal maps.

    Example:
        >>> x = torch.arange(256.).view(1, 16, 16) / 255
        >>> ssim(x, x), ssim(x, x.flip(-1)) < 1
        (tensor([1.]), tensor([True]))
    """
    x, y = (z.clamp(-VALUE_LIMIT, VALUE_LIMIT) for z in (x, y))
    window = _gaussian_window(x)
    mean_x, mean_y = _smooth(x, window), _smooth(y, window)
    mean_diff = mean_x - mean_y
    energy = mean_x.square() + mean_y.square()
    # Despite rounding, neither variance is negative, and the second is at most twice the first.
    variance = _smooth(x.square() + y.square(), window) - energy
    variance = torch.maximum(variance, torch.finfo(x.dtype).eps * energy)
    variance_diff = _smooth((x - y).square(), window) - mean_diff.square()
    variance_diff = torch.minimum(variance_diff.clamp(min=0), 2 * variance)
    luminance = 1 - mean_diff.square() / (energy + C1)
    contrast_structure = 1 - variance_diff / (variance + C2)
    return (luminance * contrast_structure).mean((1, 2))


def _range_per_image(x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute each image's minimum and range (1 if constant), of shape (B, 1, 1, 1)."""
    limit = torch.finfo(x.dtype).max / 4  # keeps the range finite
    low = x.amin((1, 2, 3), keepdim=True).clamp(-limit, limit)
    span = x.amax((1, 2, 3), keepdim=True).clamp(-limit, limit) - low
    return low, torch.where(span > SMALLEST_RANGE, span, 1)


def _gaussian_window(x: Tensor) -> Tensor:
    """Compute one axis of the window for maps of shape (N, h, w), shorter for small maps."""
    radius = (min(WINDOW_SIZE, *x.shape[1:]) - 1) // 2
    offsets = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    return torch.softmax(-offsets.square() / (2 * SIGMA**2), 0)


def _smooth(x: Tensor, window: Tensor) -> Tensor:
    """Average over the windows within the maps, (N, h, w) -> (N, h - 2r, w - 2r).

    r is the window's radius. On a GPU, float32 maps that are several channels use PyTorch's own
    depthwise kernel, which does not round to TF32; that would spoil the variances.
    """
    weight = window.expand(len(x), 1, -1)
    for kernel in (weight.unsqueeze(-1), weight.unsqueeze(-2)):
        x = F.conv2d(x, kernel, groups=len(x))
    return x


@MODELS.register_module()
class SSIMLoss(FeatureLoss):
    r"""Structural KD's distillation loss: structural dissimilarity, averaged over levels.

    .. math:: \frac{1}{N} \sum_{p=1}^{N} \frac{1 - \operatorname{mean} \mathrm{SSIM}(x_p, t_p)}{2}

    over N levels; the mean is over images, channels and windows; see :func:`ssim`. The loss is in
    [0, 1]. Both maps are shifted and scaled alike, per image, so that the teacher's values over all
    channels and pixels span [0, 1]. A constant teacher becomes 0, and the student is shifted alike,
    unscaled.

    Example:
        >>> feats = [torch.rand(2, 8, 16, 16), torch.rand(2, 8, 5, 8)]
        >>> SSIMLoss()(feats, feats)
        tensor(0.)
    """

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute (1 - mean SSIM) / 2 between two maps of shape (B, C, h, w), a scalar in [0, 1]."""
        dtype = torch.promote_types(student.dtype, torch.float32)
        student, teacher = student.to(dtype), teacher.detach().to(dtype)
        if not student.numel():
            return student.sum()
        low, span = _range_per_image(teacher)
        x, y = (((z - low) / span).flatten(0, 1) for z in (student, teacher))
        maps_at_once = max((CPU_CHUNK if x.is_cpu else CHUNK) // x[0].numel(), 1)
        with torch.autocast(x.device.type, enabled=False):
            total = sum_of_chunks(lambda *maps: (1 - ssim(*maps)).sum(), maps_at_once, x, y)
        return total / (2 * len(x))
