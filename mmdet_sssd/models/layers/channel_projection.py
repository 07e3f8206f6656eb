from collections.abc import Sequence

import torch.nn as nn
from torch import Tensor

from .saturation import saturate

WIDEST = 512  # channels; 3×3 convolutions on more cost more than they are worth
DEFAULT_WIDTH = 256


def as_levels(in_channels: int | Sequence[int]) -> tuple[int, ...]:
    """Make channels, one number for all levels or one per level, a tuple."""
    return (in_channels,) if isinstance(in_channels, int) else tuple(in_channels)


def common_width(in_channels: Sequence[int], multiple_of: int = 1) -> int:
    """Choose the common number of channels in which feature levels are processed.

    Args:
        in_channels: Channels of each level.
        multiple_of: Required divisor of the width.

    Returns:
        The levels' own number of channels if all have the same, at most 512 and divisible by
        ``multiple_of``; else 256.
    """
    widths = set(in_channels)
    width = max(widths)
    usable = len(widths) == 1 and width <= WIDEST and width % multiple_of == 0
    return width if usable else DEFAULT_WIDTH


class ChannelProjection(nn.Module):
    """1×1 convolutions from feature levels of any channels to a common width, and back.

    Levels with the same number of channels share their convolutions; levels of the common width pass
    unchanged. The papers' levels all have 256 channels and need no projection.

    Args:
        in_channels: Channels of each level.
        width: The common number of channels.
    """

    def __init__(self, in_channels: Sequence[int], width: int) -> None:
        super().__init__()
        others = sorted(set(in_channels) - {width})
        self.inward = nn.ModuleDict({str(c): nn.Conv2d(c, width, 1) for c in others})
        self.outward = nn.ModuleDict({str(c): nn.Conv2d(width, c, 1) for c in others})

    def to_width(self, x: Tensor) -> Tensor:
        """Project a level of shape (B, C_p, h, w) to (B, width, h, w)."""
        key = str(x.shape[1])
        return saturate(self.inward[key](x)) if key in self.inward else x

    def from_width(self, x: Tensor, channels: int) -> Tensor:
        """Project a map of shape (B, width, h, w) to a level's (B, ``channels``, h, w)."""
        key = str(channels)
        return saturate(self.outward[key](x)) if key in self.outward else x
