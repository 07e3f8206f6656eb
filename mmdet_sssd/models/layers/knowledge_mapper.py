import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

FEW_OBJECTS = 48  # objects; with more, the transposed product is faster (measured)


class KnowledgeMapper(nn.Module):
    """Paints object vectors onto their regions and refines the map into teacher features.

    Source: LGD (https://arxiv.org/abs/2109.11496), section 3.3. Shared by all levels.

    Args:
        channels: Channels C of every level.
        add_context_box: Whether the context object's vector is added to every pixel.
        refine_convs: Number of convolutions that refine the map, >= 1.
        refine_kernel: Their kernel size, odd.
    """

    def __init__(
        self, channels: int, add_context_box: bool, refine_convs: int, refine_kernel: int
    ) -> None:
        super().__init__()
        self.object_proj = nn.Linear(channels, channels)
        self.object_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.context_proj = nn.Linear(channels, channels) if add_context_box else None
        layers: list[nn.Module] = []
        for _ in range(refine_convs):
            layers += [
                nn.Conv2d(channels, channels, refine_kernel, padding=refine_kernel // 2),
                nn.GroupNorm(1, channels, affine=False),
                nn.ReLU(inplace=True),
            ]
        self.refine = nn.Sequential(*layers[:-1])

    def forward(
        self,
        objects: Tensor,
        regions: Tensor,
        context: Tensor | None,
        extents: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Make the teacher features of one level.

        Args:
            objects: Object vectors, without the context object, of shape (B, N, C).
            regions: Their regions, in [0, 1], of shape (B, N, h, w).
            context: Vectors of the context objects of shape (B, C), or None without them.
            extents: Rows of shape (B, N, h) and columns of shape (B, N, w) whose products are the
                regions. None if the regions are not such products.

        Returns:
            Teacher features of shape (B, C, h, w).
        """
        bias = self.object_conv.bias.expand(len(objects), -1)
        if self.context_proj is not None:
            bias = bias + self.context_proj(context)
        painted = self._painted_conv(self.object_proj(objects), regions, extents, bias)
        return self.refine(F.relu(painted, inplace=True))

    def _painted_conv(
        self,
        objects: Tensor,
        regions: Tensor,
        extents: tuple[Tensor, Tensor] | None,
        bias: Tensor,
    ) -> Tensor:
        """Paint each object's vector onto its region, convolve the map, and add ``bias`` of (B, C).

        The convolution is linear in the vectors. Multiplying them into its kernel gives, per image, a
        kernel from the N regions to the C channels: exact, and cheaper than painting first unless
        there are many objects or few pixels.
        """
        num_objects, channels, pixels = *objects.shape[1:], regions[0, 0].numel()
        region_cost = 1 if extents is None else 2 / 3  # measured; painting a pixel costs `channels`
        weight = self.object_conv.weight
        if num_objects * (channels + region_cost * pixels) > channels * pixels:
            painted = torch.einsum('bnc,bnhw->bchw', objects, regions)
            return F.conv2d(painted, weight, padding=1) + bias[:, :, None, None]
        if extents is None:
            return _region_conv(objects, regions, weight) + bias[:, :, None, None]
        return _separable_conv(objects, *extents, weight, bias)


def _region_conv(objects: Tensor, regions: Tensor, weight: Tensor) -> Tensor:
    """Convolve N regions with kernels made of the objects' vectors.

    Args:
        objects: Object vectors of shape (B, N, C).
        regions: Regions of shape (B, N, h, w).
        weight: Kernel from vectors to D channels, of shape (D, C, 3, 3).

    Returns:
        Map of shape (B, D, h, w).
    """
    (batch, num_objects, _), size = objects.shape, regions.shape[-2:]
    kernels = torch.einsum('oikl,bni->bonkl', weight, objects)
    painted = F.conv2d(
        regions.reshape(1, batch * num_objects, *size).to(kernels.dtype),
        kernels.flatten(0, 1),
        padding=1,
        groups=batch,
    )
    return painted.view(batch, -1, *size)


def _separable_conv(
    objects: Tensor, rows: Tensor, columns: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """Convolve N regions, products of rows and columns, and add a bias.

    First along the rows, for each kernel column, then along the columns, which sums over objects: a
    third of the multiplications, and nothing is kept for the backward pass.

    Args:
        objects: Object vectors of shape (B, N, C).
        rows: Rows of shape (B, N, h).
        columns: Columns of shape (B, N, w).
        weight: Kernel from vectors to D channels, of shape (D, C, 3, 3).
        bias: Added to every pixel, of shape (B, D).

    Returns:
        Map of shape (B, D, h, w).
    """
    batch, num_objects, height = rows.shape
    kernels = objects @ weight.permute(1, 3, 0, 2).flatten(1)  # a column × D × a row, 3 × D × 3
    kernels = kernels.view(batch * num_objects, -1, 3)
    down, along = (_shifted(x.to(kernels.dtype)) for x in (rows, columns))
    strips = torch.bmm(kernels, down.flatten(0, 1)).view(batch, 3 * num_objects, -1)
    added = bias.to(strips.dtype).repeat_interleave(height, 1)  # a strip along all columns
    strips = torch.cat([strips, added[:, None]], 1)  # (B, 3 N + 1, D · h)
    along = F.pad(along.flatten(1, 2), (0, 0, 0, 1), value=1)  # (B, 3 N + 1, w)
    if num_objects <= FEW_OBJECTS:
        return torch.bmm(strips.transpose(1, 2), along).unflatten(1, (-1, height))
    painted = torch.bmm(along.transpose(1, 2), strips)  # (B, w, D · h)
    return painted.unflatten(-1, (-1, height)).permute(0, 2, 3, 1).contiguous()


def _shifted(x: Tensor) -> Tensor:
    """Shift (B, N, n) by -1, 0 and 1 pixel, padding with zeros, to (B, N, 3, n)."""
    return F.pad(x, (1, 1)).unfold(-1, x.shape[-1], 1)
