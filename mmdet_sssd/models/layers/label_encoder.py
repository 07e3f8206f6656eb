from itertools import pairwise

import torch
import torch.nn as nn
from torch import Tensor
from torch.utils.checkpoint import checkpoint

MATRIX_ELEMENTS = 2**24  # most elements of d×d matrices kept for the backward pass


def normed_linears(*channels: int) -> nn.Sequential:
    """Stack linear → LayerNorm (no affine parameters) → ReLU for each step in ``channels``."""
    layers: list[nn.Module] = []
    for c_in, c_out in pairwise(channels):
        layers += [
            nn.Linear(c_in, c_out),
            nn.LayerNorm(c_out, elementwise_affine=False),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


class ObjectTransform(nn.Module):
    """Multiplies each object's vector by a matrix predicted from it.

    Args:
        channels: Length d of the vectors; the matrix is d×d.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.to_hidden = normed_linears(channels, 64, 128, 1024, 512, 256)
        self.to_matrix = nn.Linear(256, channels * channels)

    def forward(self, x: Tensor) -> Tensor:
        """Transform vectors of shape (B, N, d) to vectors of the same shape.

        With many objects, matrices are computed in chunks and recomputed in the backward pass.
        """
        objects, hidden = x.flatten(0, 1), self.to_hidden(x).flatten(0, 1)
        at_a_time = max(MATRIX_ELEMENTS // x.shape[-1] ** 2, 1)
        if len(objects) <= at_a_time:
            return self._multiply(objects, hidden).view_as(x)
        parts = [
            checkpoint(self._multiply, *part, use_reentrant=False, preserve_rng_state=False)
            for part in zip(objects.split(at_a_time), hidden.split(at_a_time), strict=True)
        ]
        return torch.cat(parts).view_as(x)

    def _multiply(self, objects: Tensor, hidden: Tensor) -> Tensor:
        """Multiply vectors of shape (n, d) by the matrices predicted from ``hidden`` of (n, 256)."""
        channels = objects.shape[-1]
        matrices = self.to_matrix(hidden).unflatten(-1, (channels, channels))
        return torch.bmm(objects.unsqueeze(1).to(matrices.dtype), matrices).squeeze(1)


class LabelEncoder(nn.Module):
    """Encodes an image's label descriptors as label embeddings, after PointNet.

    Source: LGD (https://arxiv.org/abs/2109.11496), section 3.1, and its reference code.

    Args:
        descriptor_channels: Length k of a descriptor.
        out_channels: Length C of an embedding.
    """

    def __init__(self, descriptor_channels: int, out_channels: int) -> None:
        super().__init__()
        self.descriptor_transform = ObjectTransform(descriptor_channels)
        self.to_local = normed_linears(descriptor_channels, 64)
        self.local_transform = ObjectTransform(64)
        self.to_global = normed_linears(64, 128, 1024)
        self.fuse = normed_linears(64 + 1024, 256)
        self.to_embedding = normed_linears(256, out_channels)

    def forward(self, descriptors: Tensor, valid: Tensor) -> Tensor:
        """Encode the objects of each image jointly.

        Args:
            descriptors: Descriptors of shape (B, N, k), padded to N ≥ 1 objects.
            valid: Which of them are objects, bool of shape (B, N).

        Returns:
            Label embeddings of shape (B, N, C); those of padding are meaningless, but finite.
        """
        local = self.to_local(self.descriptor_transform(descriptors))
        local = self.local_transform(local)
        features = self.to_global(local)
        # The features are ReLU outputs: a zero never wins over an object's.
        over_objects = features.masked_fill(~valid.unsqueeze(-1), 0).amax(1, keepdim=True)
        fused = torch.cat([local, over_objects.expand(-1, local.shape[1], -1)], -1)
        return self.to_embedding(self.fuse(fused))
