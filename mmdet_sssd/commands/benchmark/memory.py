"""Measures the peak memory of a training step."""

from collections import Counter
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

KINDS = {
    'cuda': 'peak of the memory allocated on the GPU, with weights and optimizer',
    'cpu': 'peak of what is kept for the backward pass, without weights',
}
"""What is measured on each type of device."""


def peak_memory(step: Callable[[], object], device: torch.device, held_before: int) -> int:
    """Measure the peak of a step on a GPU in bytes, minus ``held_before``, held by other objects."""
    torch.cuda.reset_peak_memory_stats(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - held_before


class KeptForBackward:
    """Measures the memory that autograd keeps for the backward pass, as a context.

    Tensors that share memory count once; recomputation in the backward pass does not count.

    Args:
        weights: Tensors to leave out.

    Attributes:
        peak: Peak in bytes.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self.weights = {x.untyped_storage().data_ptr() for x in weights}
        self.uses: Counter[int] = Counter()
        self.now = self.peak = 0
        self.hooks = saved_tensors_hooks(lambda x: _Kept(self, x), lambda kept: kept.tensor)

    def __enter__(self) -> 'KeptForBackward':
        self.hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.hooks.__exit__(*error)

    def count(self, tensor: Tensor, change: int) -> None:
        """Add (``change`` = 1) or remove (-1) one use of a tensor's memory."""
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key in self.weights:
            return
        was_used = self.uses[key] > 0
        self.uses[key] += change
        self.now += storage.nbytes() * ((self.uses[key] > 0) - was_used)
        self.peak = max(self.peak, self.now)


class _Kept:
    """A tensor that autograd keeps; it counts while this object lives."""

    def __init__(self, owner: KeptForBackward, tensor: Tensor) -> None:
        self.owner, self.tensor = owner, tensor
        owner.count(tensor, 1)

    def __del__(self) -> None:
        self.owner.count(self.tensor, -1)
