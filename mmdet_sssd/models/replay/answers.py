"""Lets a second pass through heads have some of the first one's answers."""

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mmdet.models import BaseDetector
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from torch import Tensor, nn

from ..outputs import map_tensors

Answers = dict[str, list[Any]]
"""What functions returned, call by call, by where they stand in a detector."""


@contextmanager
def kept_answers(detector: BaseDetector) -> Iterator[Answers]:
    """Keep what a detector's assigners and the single levels of its dense heads answer."""
    answers: Answers = defaultdict(list)

    def keeping(key: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def keep(*args: Any, **kwargs: Any) -> Any:
            answer = function(*args, **kwargs)
            answers[key].append(answer)
            return answer

        return keep

    with _replaced({**_assigners(detector), **_single_levels(detector)}, keeping):
        yield answers


@contextmanager
def given_answers(
    detector: BaseDetector, answers: Answers, assignment: bool, start_level: int
) -> Iterator[None]:
    """Answer as in the pass whose answers were kept.

    A function that is called more often than it was then works out the rest anew.

    Args:
        detector: The detector.
        answers: What :func:`kept_answers` gave.
        assignment: Whether the assigners answer the same.
        start_level: Index of the level before which dense heads answer the same, without gradient.
    """

    def giving(key: str, function: Callable[..., Any]) -> Callable[..., Any]:
        kept = iter(enumerate(answers[key]))
        is_assigner = key.endswith('.assign')

        def give(*args: Any, **kwargs: Any) -> Any:
            index, answer = next(kept, (None, None))
            if index is None or not (is_assigner or index < start_level):
                return function(*args, **kwargs)
            # samplers add to assignments
            return copy.copy(answer) if is_assigner else map_tensors(Tensor.detach, answer)

        return give

    functions = _assigners(detector) if assignment else {}
    if start_level:
        functions |= _single_levels(detector)
    with _replaced(functions, giving):
        yield


@contextmanager
def _replaced(
    owners: dict[str, Any], replacement: Callable[[str, Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Replace methods of objects; the keys end with the methods' names."""
    names = {key: key.rpartition('.')[2] for key in owners}
    for key, owner in owners.items():
        setattr(owner, names[key], replacement(key, getattr(owner, names[key])))
    try:
        yield
    finally:
        for key, owner in owners.items():
            delattr(owner, names[key])


def _dense_parts(detector: BaseDetector) -> Iterator[tuple[str, nn.Module]]:
    """Look at the modules of the heads but those that work on proposals."""
    for name, child in detector.named_children():
        if name.endswith('head') and name != 'roi_head':
            yield from child.named_modules(prefix=name)


def _assigners(detector: BaseDetector) -> dict[str, Any]:
    """Find what assigns labels to predictions, each once."""
    found: dict[int, tuple[str, Any]] = {}
    for path, module in _dense_parts(detector):
        for name, value in vars(module).items():
            if hasattr(value, 'assign'):
                found.setdefault(id(value), (f'{path}.{name}.assign', value))
    return dict(found.values())


def _single_levels(detector: BaseDetector) -> dict[str, nn.Module]:
    """Find the dense heads that work level by level."""
    return {
        f'{path}.forward_single': module
        for path, module in _dense_parts(detector)
        if isinstance(module, BaseDenseHead) and hasattr(module, 'forward_single')
    }
