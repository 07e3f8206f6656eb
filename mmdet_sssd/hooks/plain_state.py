"""State that modules and hooks keep in plain attributes, which no state dict has."""

import copy
from collections.abc import Iterator
from typing import Any

from mmengine.hooks import EarlyStoppingHook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

INTERNALS = vars(nn.Module()).keys()


def plain_state(runner: Runner) -> dict[str, Any]:
    """Copy the plain attributes of a runner's model, of the objects it holds, and of some hooks.

    Plain are None, numbers, texts, and lists and tuples of them. The objects are those that are
    attributes of modules, such as assigners.

    Returns:
        The attributes by path, such as ``model.data_preprocessor.batch_augments.0._input_size``.
    """
    return {
        f'{path}.{name}': copy.deepcopy(value)
        for path, owner in _owners(runner)
        for name, value in vars(owner).items()
        if name not in INTERNALS and _is_plain(value)
    }


def set_plain_state(runner: Runner, state: dict[str, Any]) -> None:
    """Set those of the attributes that a state has."""
    for path, owner in _owners(runner):
        for name in list(vars(owner)):
            if f'{path}.{name}' in state:
                setattr(owner, name, copy.deepcopy(state[f'{path}.{name}']))


def _owners(runner: Runner) -> Iterator[tuple[str, Any]]:
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    for path, module in model.named_modules(prefix='model'):
        yield path, module
        for name, value in vars(module).items():
            if hasattr(value, '__dict__') and not isinstance(value, (nn.Module, type)):
                yield f'{path}.{name}', value
    for hook in runner.hooks:
        if isinstance(hook, EarlyStoppingHook):
            yield type(hook).__name__, hook


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))
