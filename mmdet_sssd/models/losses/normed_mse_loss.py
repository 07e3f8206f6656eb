import torch
from mmdet.registry import MODELS
from torch import Tensor

from .feature_loss import FeatureLevels, FeatureLoss


@MODELS.register_module()
class NormedMSELoss(FeatureLoss):
    r"""LGD's distillation loss: mean squared error over the elements of all levels.

    .. math:: \frac{1}{B \sum_p C_p h_p w_p} \sum_p \lVert x_p - t_p \rVert^2

    so larger levels weigh more (LGD, https://arxiv.org/abs/2109.11496, and its reference code).
    :class:`~mmdet_sssd.models.SSSDDistiller` instance-normalises both sides first.

    Example:
        >>> NormedMSELoss()([torch.zeros(1, 1, 1, 2)], [torch.tensor([[[[1., 2.]]]])])
        tensor(2.5000)
    """

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the mean squared error between two maps of shape (B, C, h, w), a finite scalar."""
        dtype = torch.promote_types(student.dtype, torch.float32)
        limit = torch.finfo(dtype).max ** 0.5 / 1e4  # keeps a sum of 10^8 squares finite
        squares = (student.to(dtype) - teacher.to(dtype)).clamp(-limit, limit).square()
        return squares.sum() / max(squares.numel(), 1)

    def average(self, distances: Tensor, feats: FeatureLevels) -> Tensor:
        """Weigh each level by its number of elements; see the base class."""
        sizes = [x.numel() for x in feats]
        shares = distances.new_tensor([size / max(sum(sizes), 1) for size in sizes])
        return (distances * shares).sum()
