"""Attributes the work of a training step to the parts of a model, watching it from outside."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import nn
from torch.autograd.profiler import record_function
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from ...models import Distiller

BACKBONE, NECK, HEAD, TEACHER, ADAPTER, LOSS, SECOND_HEAD, BACKWARD, OTHER = PARTS = (
    'backbone',
    'neck',
    'head',
    'teacher',
    'adapter',
    'loss',
    'second head pass',
    'backward pass',
    'other',
)
"""The parts. ``head``: the detector's loss without backbone and neck, label assignment included;
``second head pass``: the same on teachers' features. ``loss``: the terms without their adapters.
``backward pass``: of all parts, recomputation included. ``other``: preprocessing, and what a distiller
does between its parts."""

LABEL = 'part: '


def _conv_backward_flops(grad: Any, x: Any, weight: Any, *settings: Any, **_: Any) -> int:
    """Count the gradients of a convolution, with groups or not: each costs as much as itself."""
    *_, transposed, _, _, needed = settings
    return conv_flop_count(x, weight, grad, transposed) * sum(needed[:2])


def flop_counter() -> FlopCounterMode:
    """Make torch's counter of the operations of convolutions and matrix products.

    It ignores element-wise operations, and mmcv's RoI and deformable ones.
    """
    formulas = {torch.ops.aten.convolution_backward: _conv_backward_flops}
    return FlopCounterMode(display=False, custom_mapping=formulas)


class Parts:
    """Follows the parts of a model while it trains, as a context; profiles show them as labels.

    Args:
        model: A detector or a distiller.
        counter: Counts operations meanwhile; None counts nothing.

    Attributes:
        flops: Operations by part.
    """

    def __init__(self, model: BaseModel, counter: FlopCounterMode | None = None) -> None:
        self.model = model
        self.counter = counter
        self.flops: Counter[str] = Counter()
        self.running = [OTHER]
        self.labels: list[record_function] = []
        self.num_passes = self.counted = 0

    def __enter__(self) -> 'Parts':
        self.handles = [
            self.model.register_forward_pre_hook(self._begin_step),
            self.model.register_forward_hook(lambda *_: self._enter(BACKWARD), always_call=True),
        ]
        self.detector = self.model
        if isinstance(self.model, Distiller):
            self.detector = self.model.student
            for teacher in self.model.teachers.values():
                self._watch(teacher, TEACHER)
            for term in self.model.terms.values():
                self._watch(term, LOSS)
                self._watch(getattr(term, 'adapter', None), ADAPTER)
        for part in (BACKBONE, NECK):
            self._watch(getattr(self.detector, part, None), part)
        self.detector.loss = self._watched_loss(self.detector.loss)
        return self

    def __exit__(self, *_: Any) -> None:
        while self.labels:
            self._leave()
        for handle in self.handles:
            handle.remove()
        del self.detector.loss

    def _begin_step(self, *_: Any) -> None:
        while self.labels:  # of the last step's backward pass
            self._leave()
        self.num_passes = 0

    def _watch(self, module: nn.Module | None, part: str) -> None:
        if isinstance(module, nn.Module):
            self.handles += (
                module.register_forward_pre_hook(lambda *_: self._enter(part)),
                module.register_forward_hook(lambda *_: self._leave(), always_call=True),
            )

    def _watched_loss(self, loss: Callable) -> Callable:
        """Watch the detector's loss; its passes after the first are on teachers' features."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            self._enter(SECOND_HEAD if self.num_passes else HEAD)
            self.num_passes += 1
            try:
                return loss(*args, **kwargs)
            finally:
                self._leave()

        return watched

    def _enter(self, part: str) -> None:
        self._count()
        # what is recomputed in the backward pass belongs to that
        self.running.append(BACKWARD if BACKWARD in self.running else part)
        self.labels.append(record_function(LABEL + self.running[-1]))
        self.labels[-1].__enter__()

    def _leave(self) -> None:
        self._count()
        self.labels.pop().__exit__(None, None, None)
        self.running.pop()

    def _count(self) -> None:
        """Give the running part what was counted since the last change."""
        total = self.counter.get_total_flops() if self.counter else 0
        if total > self.counted:
            self.flops[self.running[-1]] += total - self.counted
            self.counted = total
