from collections.abc import Sequence

import torch.nn as nn
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor

from .saturation import saturate


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
