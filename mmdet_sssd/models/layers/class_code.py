"""Codes of an object's class in its label descriptor.

Labels above the last class only occur with an RPN, which has a single class.
"""

import torch
import torch.nn as nn
from torch import Tensor

EMBEDDED_CHANNELS = 64


class OneHotClass(nn.Module):
    """One-hot code in {-1, 1}: LGD's (https://arxiv.org/abs/2109.11496).

    Args:
        num_classes: Number of classes K.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.channels = num_classes

    def forward(self, labels: Tensor) -> Tensor:
        """Code labels of shape (B, N) as (B, N, K), those above K-1 as K-1, -1 (no class) as all -1."""
        classes = torch.arange(self.channels, device=labels.device)
        return 2 * (labels.clamp(max=self.channels - 1).unsqueeze(-1) == classes).float() - 1


class EmbeddedClass(nn.Module):
    """A learned code of 64 numbers, for many classes.

    The label encoder's first transform has 256 weights per pair of descriptor elements: 373 million
    with a one-hot code of LVIS's 1203 classes.

    Args:
        num_classes: Number of classes K.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.channels = EMBEDDED_CHANNELS
        self.embedding = nn.Embedding(num_classes, EMBEDDED_CHANNELS)

    def forward(self, labels: Tensor) -> Tensor:
        """Code labels of shape (B, N) as (B, N, 64), those above K-1 as K-1, -1 (no class) as 0."""
        codes = self.embedding(labels.clamp(0, self.embedding.num_embeddings - 1))
        return codes * (labels >= 0).unsqueeze(-1)
