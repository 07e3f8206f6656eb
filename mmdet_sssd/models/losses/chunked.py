from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def sum_of_chunks(
    function: Callable[..., Tensor], size: int, student: Tensor, *others: Tensor
) -> Tensor:
    """Sum a function of tensors over chunks of their first axis, keeping one map for backward.

    The forward pass computes the gradient too, so only a chunk's intermediate results exist at a time.

    Args:
        function: Maps a chunk of each tensor to a scalar.
        size: Length of a chunk.
        student: The tensor that gets the gradient, of shape (n, ...).
        others: Tensors without gradient, of shape (n, ...).

    Returns:
        The sum, a scalar.
    """
    return _SumOfChunks.apply(function, size, student, *others)


class _SumOfChunks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, function: Callable[..., Tensor], size: int, student: Tensor, *others: Tensor
    ) -> Tensor:
        total, grad = student.new_zeros(()), torch.empty_like(student)
        for x, out, *rest in zip(*(z.split(size) for z in (student, grad, *others)), strict=True):
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                value = function(x, *rest)
                out.copy_(torch.autograd.grad(value, x)[0])
            total += value.detach()
        ctx.save_for_backward(grad)
        ctx.num_others = len(others)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return None, None, grad_output * grad, *(None,) * ctx.num_others
