"""Variants of SSSD that were tried and are not in the package, as arms of ``compare``.

    PYTHONPATH=. python tools/compare.py CONFIG --arms baseline,sssd,no_adapter,… \
        --arms-file tests/studies/variants_arms.py --seeds 3

from the root of the repository. What came of them stands in docs/benchmarks.md.
"""

from collections.abc import Sequence
from typing import Any

import torch.nn as nn
from mmdet.registry import HOOKS, MODELS
from mmengine.hooks import Hook
from mmengine.hooks.hook import DATA_BATCH
from mmengine.runner import Runner
from torch import Tensor

from mmdet_sssd.models import SSSDDistiller

from .gradients import gradient


@MODELS.register_module()
class NoAdapter(nn.Module):
    """Compares the student's features themselves."""

    def __init__(self, in_channels: int | Sequence[int]) -> None:
        super().__init__()

    def forward(self, student_feats: Sequence[Tensor]) -> Sequence[Tensor]:
        return student_feats


@MODELS.register_module()
class UnnormedDistiller(SSSDDistiller):
    """Compares features without instance normalisation before the softmax."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.terms['distill'].normalize = False


@HOOKS.register_module()
class BalancedCoefHook(Hook):
    """Sets λ so that the distillation loss pulls the backbone as hard as the detection loss.

    The norms of both gradients are measured on the batch of every ``interval``-th iteration, and λ is
    a running mean of their ratios.
    """

    def __init__(self, interval: int = 25, momentum: float = 0.5) -> None:
        self.interval = interval
        self.momentum = momentum
        self.balanced = False

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DATA_BATCH = None
    ) -> None:
        term = runner.model.terms['distill']
        if not term.detach_student and (not self.balanced or runner.iter % self.interval == 0):
            coef = self._balance(runner.model, data_batch)
            old = term.distill_coef if self.balanced else coef
            term.distill_coef = self.momentum * old + (1 - self.momentum) * coef
            self.balanced = True
        runner.message_hub.update_scalar('train/distill_coef', term.distill_coef)

    def _balance(self, model: SSSDDistiller, data_batch: dict) -> float:
        batch = model.data_preprocessor(data_batch, training=True)
        images, samples = batch['inputs'], batch['data_samples']
        losses, outputs = model._student_pass(images, samples)
        _, made = model._teacher_passes(outputs, images, samples)
        distill = model.terms['distill'](outputs, made['teacher'].detach(), images, samples)
        detection = gradient(model.parse_losses(losses)[0], model)
        return float(detection.norm() / gradient(distill['loss'], model).norm())
