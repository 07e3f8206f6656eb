from collections.abc import Sequence

import torch.nn as nn
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor


def instance_norm(x: Tensor) -> Tensor:
    """Normalise each channel of each image over its pixels, padding included.

    Like :class:`torch.nn.InstanceNorm2d` without affine parameters or running statistics, but a map
    of a single pixel, which that refuses in training, becomes zero.

    Args:
        x: Map of shape (B, C, h, w).

    Returns:
        Map of the same shape.
    """
    return F.layer_norm(x, x.shape[2:], eps=1e-5)


@MODELS.register_module()
class FeatureAdapter(BaseModule):
    """Three 3×3 convolutions between the student's features and the distillation loss.

    They are shared by all levels and dropped with the teacher (LGD,
    https://arxiv.org/abs/2109.11496).

    Args:
        in_channels: Channels C of every level.

    Example:
        >>> adapter = FeatureAdapter(in_channels=16)
        >>> [x.shape for x in adapter([torch.rand(1, 16, 8, 8), torch.rand(1, 16, 4, 4)])]
        [torch.Size([1, 16, 8, 8]), torch.Size([1, 16, 4, 4])]
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(in_channels, in_channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(in_channels, in_channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(in_channels, in_channels, 3, padding=1),
        )

    def forward(self, student_feats: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Adapt each level, a map of shape (B, C, h, w), to one of the same shape."""
        return tuple(self.convs(x) for x in student_feats)
