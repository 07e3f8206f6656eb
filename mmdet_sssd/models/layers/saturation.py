"""In float16 a sum over many channels can be too large a number, which becomes infinite.

Features reach tens of thousands; behind the convolutions of them stands a normalisation, which makes
NaN of an infinity. So it is replaced by the type's largest number. Other types are left as they are.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def saturate(x: Tensor) -> Tensor:
    """Replace infinities by the largest number of the type, in place."""
    largest = torch.finfo(x.dtype).max
    return F.hardtanh(x, -largest, largest, inplace=True) if x.dtype == torch.float16 else x


class SaturatingReLU(nn.Module):
    """Cuts off what is negative and what is infinite, in place."""

    def forward(self, x: Tensor) -> Tensor:
        """Rectify a tensor of any shape."""
        if x.dtype != torch.float16:
            return F.relu(x, inplace=True)
        return F.hardtanh(x, 0, torch.finfo(x.dtype).max, inplace=True)
