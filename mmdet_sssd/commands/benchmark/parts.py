"""Attributes the work of a training step to the parts of a model, watching it from outside."""

from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.autograd.profiler import record_function
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
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
``backward pass``: of all parts, recomputation included, and the sum of the losses. ``other``:
preprocessing, and what a distiller does between its parts."""

COUNTED = ('flops', 'operators', 'waits')
WAITING = (
    '_local_scalar_dense',
    'nonzero',
    '_unique',
    '_unique2',
    'unique_dim',
    'masked_select',
    'equal',
)
LABEL = 'part: '
OPTIMIZER = 'optimizer'  # not of a step's forward and backward pass, which are compared


def _conv_backward_flops(grad: Any, x: Any, weight: Any, *settings: Any, **_: Any) -> int:
    """Count the gradients of a convolution, with groups or not: each costs as much as itself."""
    *_, transposed, _, _, needed = settings
    return conv_flop_count(x, weight, grad, transposed) * sum(needed[:2])


class Operators(TorchDispatchMode):
    """Counts the operators that run on a device in its context, and those that wait for it.

    Views and allocations do not count. An operator waits if its result's size, or the program's next
    step, depends on values that the device computes.

    Args:
        device: Type of the device.

    Attributes:
        names: Number of operators by name.
        waits: Number of waiting ones by name.
    """

    def __init__(self, device: str = 'cpu') -> None:
        super().__init__()
        self.device = device
        self.names: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = function(*args, **kwargs or {})
        name = str(function.overloadpacket).removeprefix('aten.')
        if not (
            function.is_view or name.startswith(('empty', 'new_empty', '_unsafe_view', 'detach'))
        ):
            tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
            devices = {x.device.type for x in tensors}
            if self.device in devices:
                self.names[name] += 1
                moves = name in ('_to_copy', 'copy_') and devices > {'cpu'}
                by_mask = name.startswith('index') and _selects_by_mask(args)
                self.waits[name] += name in WAITING or by_mask or (moves and _is_on_cpu(result))
        return result


def _selects_by_mask(args: tuple) -> bool:
    return any(x.dtype == torch.bool for x in tree_leaves(args[1:2]) if isinstance(x, Tensor))


def _is_on_cpu(x: Any) -> bool:
    return isinstance(x, Tensor) and x.device.type == 'cpu'


class StepCounter(ExitStack):
    """Counts the work of what runs in its context.

    Floating-point operations are those of convolutions and matrix products; element-wise ones, and
    mmcv's RoI and deformable ones, do not count.
    """

    def __init__(self, device: str = 'cpu') -> None:
        super().__init__()
        formulas = {torch.ops.aten.convolution_backward: _conv_backward_flops}
        self.flops = self.enter_context(FlopCounterMode(display=False, custom_mapping=formulas))
        self.operators = self.enter_context(Operators(device))

    def totals(self) -> Counter[str]:
        """Sum up everything counted so far, by :data:`COUNTED`."""
        operators, waits = self.operators.names.total(), self.operators.waits.total()
        return Counter(flops=self.flops.get_total_flops(), operators=operators, waits=waits)


class Parts:
    """Follows the parts of a model while it trains, as a context; profiles show them as labels.

    Args:
        model: A detector or a distiller.
        counter: Counts work meanwhile; None counts nothing.

    Attributes:
        counts: For each of :data:`COUNTED`, numbers by part; the optimizer's step is left out.
    """

    def __init__(self, model: BaseModel, counter: StepCounter | None = None) -> None:
        self.model = model
        self.counter = counter
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)
        self.running = [OTHER]
        self.labels: list[record_function] = []
        self.num_passes = 0
        self.counted: Counter[str] = Counter()

    def __enter__(self) -> 'Parts':
        self.handles = [
            self.model.register_forward_pre_hook(self._begin_step),
            self.model.register_forward_hook(lambda *_: self._enter(BACKWARD), always_call=True),
            register_optimizer_step_pre_hook(self._begin_update),
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
        while self.labels:  # of what the last step ended with
            self._leave()
        self.num_passes = 0

    def _begin_update(self, *_: Any) -> None:
        self._begin_step()
        self._enter(OPTIMIZER)

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
        if self.counter:
            totals = self.counter.totals()
            if self.running[-1] != OPTIMIZER:
                for kind, number in (totals - self.counted).items():
                    self.counts[kind][self.running[-1]] += number
            self.counted = totals
