import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

MOST_FEW = 48  # objects; the product with more is faster the other way round (measured)


class KnowledgeMapper(nn.Module):
    """Paints the objects' vectors onto their regions and refines the map into teacher features.

    Source: LGD (https://arxiv.org/abs/2109.11496), section 3.3. Shared by all levels.

    Args:
        channels: Channels C of every level.
        add_context_box: Whether a context object's vector is broadcast over the map.
        refine_convs: How many convolutions refine the map, >= 1.
        refine_kernel: Their size, odd.
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
            objects: Vectors of the objects, without the context object, of shape (B, N, C).
            regions: Their regions, in [0, 1], of shape (B, N, h, w).
            context: Vectors of the context objects of shape (B, C), or None without them.
            extents: The regions' rows of shape (B, N, h) and columns of shape (B, N, w), whose
                products they are. None if they are other than that.

        Returns:
            Teacher features of shape (B, C, h, w).
        """
        everywhere = self.object_conv.bias.expand(len(objects), -1)
        if self.context_proj is not None:
            everywhere = everywhere + self.context_proj(context)
        painted = self._painted_conv(self.object_proj(objects), regions, extents, everywhere)
        return self.refine(F.relu(painted, inplace=True))

    def _painted_conv(
        self,
        objects: Tensor,
        regions: Tensor,
        extents: tuple[Tensor, Tensor] | None,
        everywhere: Tensor,
    ) -> Tensor:
        """Convolve the map that has each object's vector added onto its region, and add a vector.

        The convolution is linear in the vectors: multiplied into its kernel they give, per image, a
        kernel from the N regions to the C channels. That is exact, and cheaper than to paint first,
        unless there are many objects or few pixels.
        """
        num_objects, channels, pixels = *objects.shape[1:], regions[0, 0].numel()
        region_cost = 1 if extents is None else 2 / 3  # measured; a pixel painted costs `channels`
        weight = self.object_conv.weight
        if num_objects * (channels + region_cost * pixels) > channels * pixels:
            painted = torch.einsum('bnc,bnhw->bchw', objects, regions)
            return F.conv2d(painted, weight, padding=1) + everywhere[:, :, None, None]
        if extents is None:
            return _region_conv(objects, regions, weight) + everywhere[:, :, None, None]
        return _separable_conv(objects, *extents, weight, everywhere)


def _region_conv(objects: Tensor, regions: Tensor, weight: Tensor) -> Tensor:
    """Convolve N regions with the kernels that their vectors make.

    Args:
        objects: The vectors of shape (B, N, C).
        regions: The regions of shape (B, N, h, w).
        weight: The kernel from vectors to the D channels, of shape (D, C, 3, 3).

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
    objects: Tensor, rows: Tensor, columns: Tensor, weight: Tensor, everywhere: Tensor
) -> Tensor:
    """Convolve N regions that are products of rows and columns, and add a vector to every pixel.

    Down the rows first, for each column of the kernels alone, then along the columns, which adds the
    objects up: a third of the multiplications, and nothing is kept for the backward pass.

    Args:
        objects: The vectors of shape (B, N, C).
        rows: The rows of shape (B, N, h).
        columns: The columns of shape (B, N, w).
        weight: The kernel from vectors to the D channels, of shape (D, C, 3, 3).
        everywhere: The vector that is added, of shape (B, D).

    Returns:
        Map of shape (B, D, h, w).
    """
    batch, num_objects, height = rows.shape
    kernels = objects @ weight.permute(1, 3, 0, 2).flatten(1)  # a column × D × a row, 3 × D × 3
    kernels = kernels.view(batch * num_objects, -1, 3)
    down, along = (_shifted(x.to(kernels.dtype)) for x in (rows, columns))
    strips = torch.bmm(kernels, down.flatten(0, 1)).view(batch, 3 * num_objects, -1)
    added = everywhere.to(strips.dtype).repeat_interleave(height, 1)  # a strip along all columns
    strips = torch.cat([strips, added[:, None]], 1)  # (B, 3 N + 1, D · h)
    along = F.pad(along.flatten(1, 2), (0, 0, 0, 1), value=1)  # (B, 3 N + 1, w)
    if num_objects <= MOST_FEW:
        return torch.bmm(strips.transpose(1, 2), along).unflatten(1, (-1, height))
    painted = torch.bmm(along.transpose(1, 2), strips)  # (B, w, D · h)
    return painted.unflatten(-1, (-1, height)).permute(0, 2, 3, 1).contiguous()


def _shifted(x: Tensor) -> Tensor:
    """Shift (B, N, n) by -1, 0 and 1 pixel, with zeros from outside, to (B, N, 3, n)."""
    return F.pad(x, (1, 1)).unfold(-1, x.shape[-1], 1)
