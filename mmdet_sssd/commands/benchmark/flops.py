"""Counts the floating-point operations of a training step by part, forward and backward."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import conv_flop_count, flop_registry, sdpa_flop_count

from .parts import Parts

aten = torch.ops.aten


class PartFlops(TorchDispatchMode):
    """Counts the multiplications and additions of convolutions and matrix products, as a context.

    Like :mod:`torch.utils.flop_counter`, it ignores element-wise operations and mmcv's RoI and
    deformable operations; unlike it, it counts by part and handles grouped convolutions.

    Args:
        parts: Tells which part runs.

    Attributes:
        forward: Operations of the forward pass, by part.
        backward: Operations of the backward pass, recomputation included.
    """

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.parts = parts
        self.forward: Counter[str] = Counter()
        self.backward: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Run an operator and count it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = FORMULAS.get(func._overloadpacket)
        if formula is not None:
            count = formula(*args, **kwargs, out_val=out)
            node = torch._C._current_autograd_node()
            if node is None:
                self.forward[self.parts.current] += count
            else:
                self.backward[self.parts.of_node(node._sequence_nr())] += count
        return out


def _conv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, *settings: Any, out_val: Any = None
) -> int:
    """Count the gradients of a convolution: each costs as much as the convolution itself."""
    *_, transposed, _, _, needed = settings
    once = conv_flop_count(list(x.shape), list(weight.shape), list(grad.shape), transposed)
    return once * sum(needed[:2])


def _cpu_attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _cpu_attention_backward(
    _grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
) -> int:
    """Count five products for two in the forward pass, as the registry does on a GPU."""
    return sdpa_flop_count(query.shape, key.shape, value.shape) * 5 // 2


FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    aten.convolution_backward: _conv_backward,
    aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _cpu_attention_backward,
}
