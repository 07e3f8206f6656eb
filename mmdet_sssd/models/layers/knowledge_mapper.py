import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


class KnowledgeMapper(nn.Module):
    """Paints the objects' vectors onto their regions and refines the map into teacher features.

    Source: LGD (https://arxiv.org/abs/2109.11496), section 3.3. Shared by all levels.

    Args:
        channels: Channels C of every level.
        add_context_box: Whether a context object's vector is broadcast over the map.
    """

    def __init__(self, channels: int, add_context_box: bool) -> None:
        super().__init__()
        self.object_proj = nn.Linear(channels, channels)
        self.object_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.context_proj = nn.Linear(channels, channels) if add_context_box else None
        self.refine = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(1, channels, affine=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(1, channels, affine=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(1, channels, affine=False),
        )

    def forward(self, objects: Tensor, regions: Tensor, context: Tensor | None) -> Tensor:
        """Make the teacher features of one level.

        Args:
            objects: Vectors of the objects, without the context object, of shape (B, N, C).
            regions: Their regions, in [0, 1], of shape (B, N, h, w).
            context: Vectors of the context objects of shape (B, C), or None without them.

        Returns:
            Teacher features of shape (B, C, h, w).
        """
        painted = self._painted_conv(self.object_proj(objects), regions)
        if self.context_proj is not None:
            painted = painted + self.context_proj(context)[:, :, None, None]
        return self.refine(F.relu(painted))

    def _painted_conv(self, objects: Tensor, regions: Tensor) -> Tensor:
        """Convolve the map that has each object's vector added onto its region.

        The convolution is linear in the vectors: multiplied into its kernel they give, per image, a
        kernel from the N regions to the C channels. That is exact, and C/N times cheaper than to
        paint first.
        """
        (batch, num_objects, channels), size = objects.shape, regions.shape[-2:]
        kernels = torch.einsum('oikl,bni->bonkl', self.object_conv.weight, objects)
        painted = F.conv2d(
            regions.reshape(1, batch * num_objects, *size).to(kernels.dtype),
            kernels.reshape(batch * channels, num_objects, *kernels.shape[-2:]),
            padding=self.object_conv.padding,
            groups=batch,
        )
        return painted.view(batch, channels, *size) + self.object_conv.bias[:, None, None]
