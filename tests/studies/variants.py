"""Variants of SSSD that were tried but are not in the package, as arms of ``compare``.

    PYTHONPATH=. mmdet-sssd compare CONFIG --arms baseline,paper,no_adapter,… \
        --arms-file tests/studies/variants_arms.py --seeds 3

Run it from the root of the repository. docs/benchmarks.md has the results.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
import torch.nn as nn
from mmdet.registry import HOOKS, MODELS
from mmdet.structures import SampleList
from mmdet.structures.bbox import get_box_tensor
from mmengine.hooks.hook import DATA_BATCH
from mmengine.runner import Runner
from torch import Tensor

from mmdet_sssd.hooks import AdaptiveDistillCoefHook
from mmdet_sssd.hooks.distill_phases_hook import run_progress
from mmdet_sssd.models import LabelEncoderTeacher, SSSDDistiller
from mmdet_sssd.models.replay import fresh_samples, head_parameters

with suppress(ImportError):  # its packages are needed by some studies alone
    from . import efficientnet_lite  # noqa: F401


@MODELS.register_module()
class NoAdapter(nn.Module):
    """Compares the student's features without an adapter."""

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
class FadingCoefHook(AdaptiveDistillCoefHook):
    """Lets λ fall to zero over the run, along half a cosine."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(policy='constant', **settings)
        self.progress = 0.0

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DATA_BATCH = None
    ) -> None:
        self.progress = run_progress(runner, batch_idx)
        super().before_train_iter(runner, batch_idx, data_batch)

    def _factor_now(self) -> float:
        return (1 + math.cos(math.pi * self.progress)) / 2


@MODELS.register_module()
class NoisyLabelTeacher(LabelEncoderTeacher):
    """Sees randomly moved boxes and some wrong labels, so that it cannot read off the answer.

    Args:
        shift: Standard deviation of a box's four edges, as a share of its width or height.
        wrong: Share of labels to replace by random ones.
    """

    def __init__(self, *args: Any, shift: float = 0.1, wrong: float = 0.1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.shift = shift
        self.wrong = wrong

    def forward(
        self, feats: Sequence[Tensor], batch_inputs: Tensor, batch_data_samples: SampleList
    ) -> tuple[Tensor, ...]:
        samples = fresh_samples(batch_data_samples)
        for sample in samples if self.training else ():
            objects = sample.gt_instances
            boxes = get_box_tensor(objects.bboxes)
            sizes = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
            moved = boxes + self.shift * sizes * torch.randn_like(boxes)
            objects.bboxes = moved.view(-1, 2, 2).sort(1).values.flatten(1)
            drawn = torch.randint_like(objects.labels, self.num_classes)
            is_wrong = torch.rand(len(boxes), device=boxes.device) < self.wrong
            objects.labels = drawn.where(is_wrong, objects.labels)
        return super().forward(feats, batch_inputs, samples)


@MODELS.register_module()
class ResidualTeacher(LabelEncoderTeacher):
    """Adds what it paints to the student's own features: it starts as good as the student.

    The stock teacher's features are made of labels alone; a student with pretrained weights outruns it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        (channels,) = {*self.in_channels}
        self.to_residual = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.to_residual.weight)
        nn.init.zeros_(self.to_residual.bias)

    def forward(
        self, feats: Sequence[Tensor], batch_inputs: Tensor, batch_data_samples: SampleList
    ) -> tuple[Tensor, ...]:
        painted = super().forward(feats, batch_inputs, batch_data_samples)
        return tuple(x.detach() + self.to_residual(y) for x, y in zip(feats, painted, strict=True))


@MODELS.register_module()
class OwnClassifierDistiller(SSSDDistiller):
    """Gives the teacher its own classification branches, which start as the student's."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.own_classifier = nn.ParameterDict(
            {
                name.replace('.', '/'): nn.Parameter(module._parameters[key].detach().clone())
                for name, module, key in head_parameters(self.student)
                if 'cls' in name
            }
        )

    def _trained_pass(self, *args: Any) -> Any:
        places = [x for x in head_parameters(self.student) if 'cls' in x[0]]
        shared = [module._parameters[key] for _, module, key in places]
        for name, module, key in places:
            module._parameters[key] = self.own_classifier[name.replace('.', '/')]
        try:
            return super()._trained_pass(*args)
        finally:
            for (_, module, key), parameter in zip(places, shared, strict=True):
                module._parameters[key] = parameter
