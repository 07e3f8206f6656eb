"""The memory that a training step takes at its peak."""

from collections import Counter
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

KINDS = {
    'cuda': 'peak of the memory allocated on the GPU, with weights and optimizer',
    'cpu': 'peak of what is kept for the backward pass, without weights',
}
"""What is measured, by type of device."""


def peak_memory(step: Callable[[], object], device: torch.device, held_before: int) -> int:
    """Measure the peak in bytes of a CUDA step, without ``held_before``, bytes that others hold."""
    torch.cuda.reset_peak_memory_stats(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - held_before


class KeptForBackward:
    """Measures what autograd keeps for the backward pass, as a context.

    Tensors that share memory count once. What is computed again in the backward pass does not count.

    Args:
        weights: Tensors that do not count.

    Attributes:
        peak: Bytes at the peak.
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
        """Count one use more (``change`` 1) or less (-1) of a tensor's memory."""
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key in self.weights:
            return
        was_used = self.uses[key] > 0
        self.uses[key] += change
        self.now += storage.nbytes() * ((self.uses[key] > 0) - was_used)
        self.peak = max(self.peak, self.now)


class _Kept:
    """A tensor that autograd keeps; it is counted as long as this lives."""

    def __init__(self, owner: KeptForBackward, tensor: Tensor) -> None:
        self.owner, self.tensor = owner, tensor
        owner.count(tensor, 1)

    def __del__(self) -> None:
        self.owner.count(self.tensor, -1)
