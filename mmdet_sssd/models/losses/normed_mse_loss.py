import torch
import torch.nn as nn
from mmdet.registry import MODELS
from torch import Tensor

from .feature_loss import FeatureLevels, check_levels, check_loss_weight


def normed_mse_loss(student_feats: FeatureLevels, teacher_feats: FeatureLevels) -> Tensor:
    r"""Mean squared error over all elements of all levels together.

    .. math:: \frac{1}{B \sum_p C h_p w_p} \sum_p \lVert x_p - t_p \rVert^2

    so that large levels weigh more (LGD, https://arxiv.org/abs/2109.11496, and its reference code).

    Args:
        student_feats: Levels of shape (B, C, h_p, w_p).
        teacher_feats: Levels of the same shapes.

    Returns:
        A scalar in float32 or wider; 0 where there are no elements.

    Raises:
        ValueError: if the shapes of the two sides differ or there are no levels.

    Example:
        >>> normed_mse_loss([torch.zeros(1, 1, 1, 2)], [torch.tensor([[[[1., 2.]]]])])
        tensor(2.5000)
    """
    check_levels(student_feats, teacher_feats)
    num_elements = sum(x.numel() for x in student_feats)
    total = student_feats[0].new_zeros((), dtype=torch.float32)
    for student, teacher in zip(student_feats, teacher_feats, strict=True):
        dtype = torch.promote_types(student.dtype, torch.float32)
        total = total + (student.to(dtype) - teacher.to(dtype)).square().sum()
    return total / max(num_elements, 1)


@MODELS.register_module()
class NormedMSELoss(nn.Module):
    """LGD's distillation loss: mean squared error between instance-normalised maps.

    :class:`~mmdet_sssd.models.SSSDDistiller` normalises both sides before it calls its loss; see
    :func:`normed_mse_loss` for the formula.

    Args:
        loss_weight: Factor of the loss, >= 0. Defaults to 1.

    Raises:
        ConfigError: if it is not.
    """

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        check_loss_weight(loss_weight)
        self.loss_weight = loss_weight

    def forward(self, student_feats: FeatureLevels, teacher_feats: FeatureLevels) -> Tensor:
        """Compute ``loss_weight`` times :func:`normed_mse_loss`, a scalar."""
        return self.loss_weight * normed_mse_loss(student_feats, teacher_feats)
