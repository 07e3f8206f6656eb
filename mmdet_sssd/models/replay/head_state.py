"""Undoes a pass's changes to the heads, except gradients."""

import copy
import random
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from torch import Tensor

MODULE_INTERNALS = frozenset(vars(nn.Module())) - {'_buffers'}
WHOLE = (np.ndarray, np.random.Generator, np.random.RandomState, random.Random, torch.Generator)
CODE = (nn.Module, nn.Parameter, type, FunctionType, BuiltinFunctionType, MethodType, ModuleType)


@contextmanager
def undone(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Undo, at the end of the context, all changes to modules and the objects they hold.

    This covers buffers and plain attributes, and everything nested in them: containers, arrays,
    generators, and objects such as assigners and samplers. The context works on copies, so tensors
    saved by autograd are not written to; parameters are left out.
    """
    before = [(vars(module), dict(vars(module))) for module in modules]
    memo: dict[int, Any] = {}
    for attributes, values in before:
        for name, value in values.items():
            if name not in MODULE_INTERNALS:
                attributes[name] = _copied(value, memo)
    try:
        yield
    finally:
        for attributes, values in before:
            attributes.clear()
            attributes.update(values)


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """Copy whatever can be changed in place. ``memo`` has earlier copies by identity."""
    if isinstance(value, CODE) or id(value) in memo:
        return memo.get(id(value), value)
    if isinstance(value, Tensor):
        made = value.detach().clone()
    elif isinstance(value, WHOLE):
        made = copy.deepcopy(value)
    elif isinstance(value, (dict, list, deque, set)):
        return _copied_container(value, memo)
    elif isinstance(value, tuple):
        items = [_copied(x, memo) for x in value]
        same = all(x is y for x, y in zip(items, value, strict=True))
        made = value if same else _rebuilt_tuple(value, items)
    elif hasattr(value, '__dict__'):
        return _copied_object(value, memo)
    else:
        return value
    memo[id(value)] = made
    return made


def _copied_container(value: Any, memo: dict[int, Any]) -> Any:
    memo[id(value)] = made = copy.copy(value)
    if isinstance(value, dict):
        for key, item in value.items():
            made[key] = _copied(item, memo)
    elif not isinstance(value, set):  # its items are hashable, so they do not change
        for index, item in enumerate(value):
            made[index] = _copied(item, memo)
    return made


def _copied_object(value: Any, memo: dict[int, Any]) -> Any:
    try:
        made = copy.copy(value)
    except Exception:  # such as a system handle: shared
        return value
    if made is value:  # a singleton, such as a logger
        return value
    memo[id(value)] = made
    for name, item in vars(value).items():
        vars(made)[name] = _copied(item, memo)
    return made


def _rebuilt_tuple(value: tuple, items: list) -> tuple:
    return type(value)(*items) if hasattr(value, '_fields') else type(value)(items)
