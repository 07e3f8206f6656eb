from collections.abc import Callable, Sequence
from typing import Any

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor
from torch.nn import Parameter

from .model_parts import find_distiller


@HOOKS.register_module()
class SeparateClippingHook(Hook):
    """Clips the student's gradients by their own norm, as in stock training.

    mmengine's ``clip_grad`` takes one norm of all gradients. Those of teacher and adapter would count
    in it, and the student would take smaller steps than without them. With this hook theirs are
    clipped apart from the student's, whose norm the log has as ``grad_norm``. Clipping by value,
    element by element, stays as it is.

    Raises:
        ConfigError: before the first iteration, if the model is not a distiller.
    """

    def before_train(self, runner: Runner) -> None:
        """Let the optimizer's wrapper, if it clips, clip in two parts."""
        student = set(find_distiller(runner, self).student.parameters())
        wrapper = runner.optim_wrapper
        if getattr(wrapper, 'clip_grad_kwargs', None):
            wrapper.clip_func = _separately(wrapper.clip_func, student)


def _separately(clip: Callable, own: set[Parameter]) -> Callable:
    """Let a function clip the parameters of a set apart from others; it returns their norm."""

    def clip_both(parameters: Sequence[Parameter], **settings: Any) -> Tensor | None:
        if others := [x for x in parameters if x not in own]:
            clip(others, **settings)
        return clip([x for x in parameters if x in own], **settings)

    return clip_both
