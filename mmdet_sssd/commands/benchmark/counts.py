"""Counts the work of a training step: floating-point operations, operators, and waits."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from ...models import Distiller
from ..training_steps import Trainee

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


STUDENT, TEACHER, SECOND_HEAD, TERMS, REST = PARTS = (
    'student',
    'teacher',
    'second head pass',
    'terms',
    'backward and other',
)
"""The parts of a step. The forward pass of a stock detector is all ``student``; ``second head pass``
is the student's head on teachers' features; ``terms`` includes their adapters."""
METHODS = {
    '_student_pass': STUDENT,
    '_teacher_passes': TEACHER,
    '_label': TEACHER,  # of a SemiDistiller
    '_trained_pass': SECOND_HEAD,  # called by the teachers'
    '_term_losses': TERMS,
}


def count_step(trainee: Trainee) -> dict[str, dict[str, int]]:
    """Count the work of a step, without the optimizer's.

    Returns:
        Numbers by :data:`COUNTED` for each of :data:`PARTS` that has work.
    """
    counter = StepCounter(trainee.device.type)
    with _parts_followed(trainee.model, counter) as parts, counter:
        handle = register_optimizer_step_pre_hook(lambda *_: counter.close())
        try:
            trainee.step()
        finally:
            handle.remove()
    parts[TEACHER].subtract(parts[SECOND_HEAD])
    parts[REST] = counter.totals()
    for part in PARTS[:-1]:
        parts[REST].subtract(parts[part])
    return {part: dict(parts[part]) for part in PARTS if any(parts[part].values())}


@contextmanager
def _parts_followed(model: BaseModel, counter: 'StepCounter') -> Iterator[dict[str, Counter]]:
    """Add up what a counter counts in the methods of each part."""
    found: dict[str, Counter] = {part: Counter() for part in PARTS}
    methods = METHODS if isinstance(model, Distiller) else {'loss': STUDENT}
    methods = {name: part for name, part in methods.items() if hasattr(model, name)}

    def followed(part: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            found[part].subtract(counter.totals())
            result = method(*args, **kwargs)
            found[part].update(counter.totals())
            return result

        return call

    for name, part in methods.items():
        setattr(model, name, followed(part, getattr(model, name)))
    try:
        yield found
    finally:
        for name in methods:
            delattr(model, name)


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
