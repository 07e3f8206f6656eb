"""Attributes the work of a training step to the parts of a model, watching it from outside."""

from bisect import bisect_right
from collections.abc import Callable
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import nn
from torch.autograd.profiler import record_function

from ...models import Distiller

BACKBONE, NECK, HEAD, TEACHER, ADAPTER, LOSS, SECOND_HEAD, OTHER = PARTS = (
    'backbone',
    'neck',
    'head',
    'teacher',
    'adapter',
    'loss',
    'second head pass',
    'other',
)
"""The parts. ``head``: the detector's loss without backbone and neck, label assignment included;
``second head pass``: the same on teachers' features. ``loss``: the terms without their adapters.
``other``: preprocessing, the optimizer, and what a distiller does between its parts."""

LABEL = 'part: '


class Parts:
    """Follows the parts of a model while it trains, as a context.

    Hooks tell the running part in the forward pass. The running autograd node tells it in the
    backward pass: nodes are numbered as they are made, and each part makes a range of them. Profiles
    show each part as a label.

    Args:
        model: A detector or a distiller.
    """

    def __init__(self, model: BaseModel) -> None:
        self.model = model
        self.running = [OTHER]
        self.first_nodes = [0]
        self.parts_of_nodes = [OTHER]
        self.labels: list[record_function] = []
        self.num_passes = 0

    @property
    def current(self) -> str:
        """The part whose forward pass is running."""
        return self.running[-1]

    def of_node(self, sequence_number: int) -> str:
        """Look up the part that made an autograd node."""
        return self.parts_of_nodes[bisect_right(self.first_nodes, sequence_number) - 1]

    def __enter__(self) -> 'Parts':
        self.handles = [self.model.register_forward_pre_hook(self._begin_step)]
        detector = self.model
        if isinstance(self.model, Distiller):
            detector = self.model.student
            for teacher in self.model.teachers.values():
                self._watch(teacher, TEACHER)
            for term in self.model.terms.values():
                self._watch(term, LOSS)
                if isinstance(getattr(term, 'adapter', None), nn.Module):
                    self._watch(term.adapter, ADAPTER)
        for name, part in (('backbone', BACKBONE), ('neck', NECK)):
            if isinstance(getattr(detector, name, None), nn.Module):
                self._watch(getattr(detector, name), part)
        self.detector = detector
        detector.loss = self._watched_loss(detector.loss)
        self._note()
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self.handles:
            handle.remove()
        del self.detector.loss
        self._note()

    def _begin_step(self, *_: Any) -> None:
        self.num_passes = 0

    def _watch(self, module: nn.Module, part: str) -> None:
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
        self.running.append(part)
        self.labels.append(record_function(LABEL + part))
        self.labels[-1].__enter__()
        self._note()

    def _leave(self) -> None:
        self.labels.pop().__exit__(None, None, None)
        self.running.pop()
        self._note()

    def _note(self) -> None:
        """Attribute autograd nodes made from here on to the current part."""
        self.first_nodes.append(torch.autograd._get_sequence_nr())
        self.parts_of_nodes.append(self.current)
