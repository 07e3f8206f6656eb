from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .saturation import saturate

NUM_HEADS = 8
SMALLEST_AREA = 1e-6  # of a region, in level pixels; an image pixel at stride 512 has 4e-6


class AppearanceEncoder(nn.Module):
    """Averages a feature level over each object's region into one vector.

    Source: LGD (https://arxiv.org/abs/2109.11496), section 3.2. All levels share the
    convolution.

    Args:
        channels: Channels C of every level.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.GroupNorm(1, channels, affine=False)

    def forward(self, x: Tensor, regions: Tensor) -> Tensor:
        """Embed the objects' appearance on one level.

        Args:
            x: Student features of shape (B, C, h, w).
            regions: The objects' regions, in [0, 1], of shape (B, N, h, w), in float32 or wider.

        Returns:
            Appearance embeddings of shape (B, N, C), zero where a region is empty.
        """
        y = F.relu(self.norm(saturate(self.conv(x))), inplace=True).flatten(2)
        regions = regions.flatten(2)
        areas = regions.sum(-1, keepdim=True).clamp(min=SMALLEST_AREA)
        with torch.autocast(x.device.type, enabled=False):  # sums are too large for float16
            return torch.bmm(regions, y.to(regions.dtype).transpose(1, 2)) / areas


class RelationAdapter(nn.Module):
    """Attention from appearance to labels among the objects of each image.

    Source: LGD (https://arxiv.org/abs/2109.11496), section 3.2. All levels share it and are
    processed in one call.

    Args:
        channels: Length C of the embeddings, a multiple of 8 (the number of heads).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, NUM_HEADS, batch_first=True)

    def forward(
        self, appearance: Sequence[Tensor], label_embeddings: Tensor, valid: Tensor
    ) -> tuple[Tensor, ...]:
        """Relate the objects of each image.

        Args:
            appearance: Per level, queries of shape (B, N, C).
            label_embeddings: Keys and values of shape (B, N, C).
            valid: Which of the N are objects, bool of shape (B, N).

        Returns:
            Per level, the objects' vectors of shape (B, N, C); those of padding are meaningless,
            but finite.
        """
        attendable = valid.clone()
        attendable[:, 0] = True  # may be padding: a softmax needs one key
        out, _ = self.attention(
            torch.cat(tuple(appearance), 1),
            label_embeddings,
            label_embeddings,
            key_padding_mask=~attendable,
            need_weights=False,
        )
        return out.chunk(len(appearance), 1)
