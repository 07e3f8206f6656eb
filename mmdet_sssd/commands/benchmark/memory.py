"""Measures the peak memory of a training step."""

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ..training_steps import Trainee

KINDS = {
    'cuda': 'peak of the memory allocated on the GPU, with weights and optimizer',
    'cpu': 'peak of what is kept for the backward pass, without weights',
}
"""What is measured on each type of device."""


def peak_memory(trainee: Trainee, held_before: int) -> int:
    """Measure the peak of a step in bytes, see :data:`KINDS`; without ``held_before`` on a GPU."""
    if trainee.device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(trainee.device)
        trainee.step()
        torch.cuda.synchronize(trainee.device)
        return torch.cuda.max_memory_allocated(trainee.device) - held_before
    return peak_kept(trainee.step, [*trainee.model.parameters(), *trainee.model.buffers()])


def peak_kept(step: Callable[[], object], weights: list[Tensor]) -> int:
    """Measure the peak in bytes of what autograd keeps for the backward pass, without weights.

    Tensors that share memory count once; recomputation in the backward pass does not count.
    """
    left_out = {x.untyped_storage().data_ptr() for x in weights}
    uses: Counter[int] = Counter()
    now = peak = 0

    def count(tensor: Tensor, change: int) -> None:
        nonlocal now, peak
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key not in left_out:
            was_used = uses[key] > 0
            uses[key] += change
            now += storage.nbytes() * ((uses[key] > 0) - was_used)
            peak = max(peak, now)

    class Kept:
        """A tensor that autograd keeps; it counts while this object lives."""

        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor
            count(tensor, 1)

        def __del__(self) -> None:
            count(self.tensor, -1)

    with saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        step()
    return peak
