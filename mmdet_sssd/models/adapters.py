"""Modules that fit feature levels to the teacher's, and what they share with the implicit teacher."""

from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor

from ..errors import check

WIDEST = 512  # channels; 3×3 convolutions on more cost more than they are worth
DEFAULT_WIDTH = 256


def saturate(x: Tensor) -> Tensor:
    """Replace a float16 tensor's infinities by the type's largest numbers, in place.

    Features reach tens of thousands, so sums over many channels overflow; the normalisation after
    them would make NaN of an infinity. Other types are left as they are.
    """
    largest = torch.finfo(x.dtype).max
    return F.hardtanh(x, -largest, largest, inplace=True) if x.dtype == torch.float16 else x


class SaturatingReLU(nn.Module):
    """Cuts off what is negative, and in float16 what is infinite, in place."""

    def forward(self, x: Tensor) -> Tensor:
        """Rectify a tensor of any shape."""
        if x.dtype != torch.float16:
            return F.relu(x, inplace=True)
        return F.hardtanh(x, 0, torch.finfo(x.dtype).max, inplace=True)


def instance_norm(x: Tensor) -> Tensor:
    """Normalise each channel of each image, x of shape (B, C, h, w), over its pixels.

    Like :class:`torch.nn.InstanceNorm2d` without affine parameters or running statistics, but it makes
    a single-pixel map zero, where that layer raises an error in training.
    """
    return F.layer_norm(x, x.shape[2:], eps=1e-5)


def as_levels(in_channels: int | Sequence[int]) -> tuple[int, ...]:
    """Make channels, one number for all levels or one per level, a tuple."""
    return (in_channels,) if isinstance(in_channels, int) else tuple(in_channels)


class ChannelProjection(nn.Module):
    """1×1 convolutions from feature levels of any channels to a common width, and back.

    The width is the levels' number of channels if all have the same, at most 512 and a multiple of
    ``multiple_of``; else 256. Levels of that width pass unchanged, as in the papers, where all have
    256 channels. Others share convolutions with those that have as many channels.

    Args:
        in_channels: Channels of each level.
        multiple_of: Required divisor of the width.

    Attributes:
        width: The common number of channels.
    """

    def __init__(self, in_channels: Sequence[int], multiple_of: int = 1) -> None:
        super().__init__()
        widest = max(in_channels)
        suits = min(in_channels) == widest <= WIDEST and widest % multiple_of == 0
        self.width = widest if suits else DEFAULT_WIDTH
        others = sorted(set(in_channels) - {self.width})
        self.inward = nn.ModuleDict({str(c): nn.Conv2d(c, self.width, 1) for c in others})
        self.outward = nn.ModuleDict({str(c): nn.Conv2d(self.width, c, 1) for c in others})

    def to_width(self, x: Tensor) -> Tensor:
        """Project a level of shape (B, C_p, h, w) to (B, width, h, w)."""
        key = str(x.shape[1])
        return saturate(self.inward[key](x)) if key in self.inward else x

    def from_width(self, x: Tensor, channels: int) -> Tensor:
        """Project a map of shape (B, width, h, w) to a level's (B, ``channels``, h, w)."""
        key = str(channels)
        return saturate(self.outward[key](x)) if key in self.outward else x


@MODELS.register_module()
class FeatureAdapter(BaseModule):
    """Convolutions between the student's features and the distillation loss.

    All levels share them; they are dropped with the teacher (LGD, https://arxiv.org/abs/2109.11496).
    Levels of unequal or more than 512 channels are projected to 256 by 1×1 convolutions, and back.

    Args:
        in_channels: Channels C_p of each level, or one number for all.
        num_convs: Number of convolutions, >= 1. Defaults to LGD's 3.
        kernel_size: Kernel size, odd. Defaults to LGD's 3.

    Raises:
        ConfigError: if ``num_convs`` is below 1 or ``kernel_size`` even.

    Example:
        >>> adapter = FeatureAdapter(in_channels=[16, 32])
        >>> [x.shape for x in adapter([torch.rand(1, 16, 8, 8), torch.rand(1, 32, 4, 4)])]
        [torch.Size([1, 16, 8, 8]), torch.Size([1, 32, 4, 4])]
    """

    def __init__(
        self, in_channels: int | Sequence[int], num_convs: int = 3, kernel_size: int = 3
    ) -> None:
        super().__init__()
        check('num_convs', num_convs, num_convs >= 1, '1 or more')
        check('kernel_size', kernel_size, kernel_size % 2 == 1, 'an odd number')
        self.projection = ChannelProjection(as_levels(in_channels))
        width, padding = self.projection.width, kernel_size // 2
        layers: list[nn.Module] = []
        for _ in range(num_convs):
            layers += [nn.Conv2d(width, width, kernel_size, padding=padding), SaturatingReLU()]
        self.convs = nn.Sequential(*layers[:-1])

    def forward(self, student_feats: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Adapt each level, a map of shape (B, C_p, h, w), to one of the same shape."""
        return tuple(map(self._adapt, student_feats))

    def _adapt(self, x: Tensor) -> Tensor:
        adapted = saturate(self.convs(self.projection.to_width(x)))
        return self.projection.from_width(adapted, x.shape[1])


@MODELS.register_module()
class ChannelAdapter(BaseModule):
    """A 1×1 convolution on each level whose channels differ from the teacher's; identity on others.

    Args:
        in_channels: Channels of each of the student's levels.
        out_channels: Channels of the matching teacher levels.

    Example:
        >>> adapter = ChannelAdapter(in_channels=[16, 32], out_channels=[16, 64])
        >>> [x.shape for x in adapter([torch.rand(1, 16, 8, 8), torch.rand(1, 32, 4, 4)])]
        [torch.Size([1, 16, 8, 8]), torch.Size([1, 64, 4, 4])]
    """

    def __init__(self, in_channels: Sequence[int], out_channels: Sequence[int]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Identity() if c == d else nn.Conv2d(c, d, 1)
            for c, d in zip(in_channels, out_channels, strict=True)
        )

    def forward(self, student_feats: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Adapt each level, a map of shape (B, C_p, h, w), to (B, D_p, h, w)."""
        return tuple(
            x if isinstance(level, nn.Identity) else saturate(level(x))
            for level, x in zip(self.levels, student_feats, strict=True)
        )
