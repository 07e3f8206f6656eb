from collections.abc import Sequence

import torch.nn as nn
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor

from ...errors import check
from .channel_projection import ChannelProjection, as_levels, common_width
from .recomputed import recomputed
from .saturation import SaturatingReLU, saturate


def instance_norm(x: Tensor) -> Tensor:
    """Normalise each channel of each image over its pixels, padding included.

    Like :class:`torch.nn.InstanceNorm2d` without affine parameters or running statistics, but it makes
    a single-pixel map zero, where that layer raises an error in training.

    Args:
        x: Map of shape (B, C, h, w).

    Returns:
        Map of the same shape.
    """
    return F.layer_norm(x, x.shape[2:], eps=1e-5)


@MODELS.register_module()
class FeatureAdapter(BaseModule):
    """Convolutions between the student's features and the distillation loss.

    All levels share them; they are dropped with the teacher (LGD, https://arxiv.org/abs/2109.11496).
    Levels of unequal or very many channels are projected by 1×1 convolutions, see
    :func:`common_width`.

    Args:
        in_channels: Channels C_p of each level, or one number for all.
        num_convs: Number of convolutions, >= 1. Defaults to LGD's 3.
        kernel_size: Kernel size, odd. Defaults to LGD's 3.
        with_cp: Whether to recompute activations in the backward pass, to save memory. Defaults to
            False.

    Raises:
        ConfigError: if ``num_convs`` is below 1 or ``kernel_size`` even.

    Example:
        >>> adapter = FeatureAdapter(in_channels=[16, 32])
        >>> [x.shape for x in adapter([torch.rand(1, 16, 8, 8), torch.rand(1, 32, 4, 4)])]
        [torch.Size([1, 16, 8, 8]), torch.Size([1, 32, 4, 4])]
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        num_convs: int = 3,
        kernel_size: int = 3,
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        check('num_convs', num_convs, num_convs >= 1, '1 or more')
        check('kernel_size', kernel_size, kernel_size % 2 == 1, 'an odd number')
        in_channels = as_levels(in_channels)
        width = common_width(in_channels)
        self.projection = ChannelProjection(in_channels, width)
        layers: list[nn.Module] = []
        for _ in range(num_convs):
            conv = nn.Conv2d(width, width, kernel_size, padding=kernel_size // 2)
            layers += [conv, SaturatingReLU()]
        self.convs = nn.Sequential(*layers[:-1])
        self.with_cp = with_cp

    def forward(self, student_feats: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Adapt each level, a map of shape (B, C_p, h, w), to one of the same shape."""
        return tuple(recomputed(self.with_cp, self._adapt, x) for x in student_feats)

    def _adapt(self, x: Tensor) -> Tensor:
        adapted = saturate(self.convs(self.projection.to_width(x)))
        return self.projection.from_width(adapted, x.shape[1])
