"""Counts operators and waits of training steps by part, with the code paths of a GPU.

python -m tests.studies.operators retinanet/retinanet_r50_fpn_1x_coco.py …
"""

import sys
from typing import Any

import torch
from mmdet.models.losses import FocalLoss, focal_loss
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

from mmdet_sssd.commands.benchmark.benchmark import BenchmarkOptions, run_benchmark
from mmdet_sssd.models import JSDistanceLoss

ARMS = ['baseline', 'paper', 'paper+economy=True', 'gentle']


def main(configs: list[str], shape: tuple[int, int] = (320, 320)) -> None:
    """Print the table of each config of mmdet."""
    sys.modules[JSDistanceLoss.__module__]._JSDistances.blockwise = False
    FocalLoss.forward = _forward
    focal_loss._sigmoid_focal_loss = lambda *args: _focal(*args[:4])
    _focal.register_autograd(_backward, setup_context=_keep)
    for config in configs:
        print(config)
        options = BenchmarkOptions(f'mmdet::{config}', ARMS, shape=shape, device='cpu', steps=1)
        run_benchmark(options)


def _forward(self, pred, target, weight=None, avg_factor=None, reduction_override=None):
    """Compute the loss as mmdet does on a GPU: by one operator of mmcv's and one for its gradient."""
    reduction = reduction_override or self.reduction
    settings = dict(gamma=self.gamma, alpha=self.alpha, reduction=reduction, avg_factor=avg_factor)
    return self.loss_weight * focal_loss.sigmoid_focal_loss(pred, target, weight, **settings)


@torch.library.custom_op('studies::focal', mutates_args=())
def _focal(x: Tensor, labels: Tensor, gamma: float, alpha: float) -> Tensor:
    targets, weights, missing = _terms(x, labels, alpha)
    return weights * missing**gamma * binary_cross_entropy_with_logits(x, targets, reduction='none')


@torch.library.custom_op('studies::focal_grad', mutates_args=())
def _focal_grad(grad: Tensor, x: Tensor, labels: Tensor, gamma: float, alpha: float) -> Tensor:
    targets, weights, missing = _terms(x, labels, alpha)
    loss = binary_cross_entropy_with_logits(x, targets, reduction='none')
    slope = gamma * missing**gamma * (1 - missing) * loss + missing ** (gamma + 1)
    return grad * weights * slope * (1 - 2 * targets)


def _terms(x: Tensor, labels: Tensor, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the targets, their weights, and what is missing to the probability 1 of each."""
    targets = one_hot(labels, x.shape[1] + 1)[:, :-1].to(x)
    return targets, (targets * alpha).where(targets > 0, 1 - alpha), (targets - x.sigmoid()).abs()


def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.settings = inputs[2:]


def _backward(ctx: Any, grad: Tensor) -> tuple:
    return _focal_grad(grad, *ctx.saved_tensors, *ctx.settings), None, None, None


if __name__ == '__main__':
    torch.set_num_threads(1)
    main(sys.argv[1:])
