"""State that detectors and hooks keep in plain attributes, which no state dict has."""

import copy
from collections.abc import Iterable, Iterator
from typing import Any

from mmengine.hooks import EarlyStoppingHook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from ..models import Distiller

INTERNALS = vars(nn.Module()).keys()


def plain_state(owners: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Copy the plain attributes of objects: None, numbers, texts, and lists and tuples of them.

    Returns:
        The attributes by path, such as ``detector.data_preprocessor.batch_augments.0._input_size``.
    """
    return {
        f'{path}.{name}': copy.deepcopy(value)
        for path, owner in owners
        for name, value in vars(owner).items()
        if name not in INTERNALS and _is_plain(value)
    }


def set_plain_state(owners: Iterable[tuple[str, Any]], state: dict[str, Any]) -> None:
    """Set the objects' attributes that a state has, and remove them from it."""
    for path, owner in owners:
        for name in list(vars(owner)):
            if f'{path}.{name}' in state:
                setattr(owner, name, state.pop(f'{path}.{name}'))


def parts_of_detector(runner: Runner) -> Iterator[tuple[str, Any]]:
    """Yield modules of the detector and objects that they hold, such as assigners, with their paths.

    Teachers and terms are left out: their hooks save them.
    """
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    detector = model.student if isinstance(model, Distiller) else model
    for path, module in detector.named_modules(prefix='detector'):
        yield path, module
        for name, value in vars(module).items():
            if hasattr(value, '__dict__') and not isinstance(value, (nn.Module, type)):
                yield f'{path}.{name}', value


def stopping_hooks(runner: Runner) -> Iterator[tuple[str, EarlyStoppingHook]]:
    """Yield the hooks that count validations, with their names."""
    for hook in runner.hooks:
        if isinstance(hook, EarlyStoppingHook):
            yield type(hook).__name__, hook


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))
