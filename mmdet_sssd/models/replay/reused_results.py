"""Lets a second pass through the heads reuse results of the first."""

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mmdet.models import BaseDetector
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from torch import Tensor, nn

from ..outputs import map_tensors

Results = dict[str, list[Any]]
"""Return values of functions, call by call, by the functions' paths in a detector."""


@contextmanager
def record_results(detector: BaseDetector) -> Iterator[Results]:
    """Record the results of a detector's assigners and of its dense heads' single levels."""
    results: Results = defaultdict(list)

    def recording(key: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def record(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            results[key].append(result)
            return result

        return record

    with _replaced({**_assigners(detector), **_single_levels(detector)}, recording):
        yield results


@contextmanager
def reuse_results(
    detector: BaseDetector, results: Results, assignment: bool, start_level: int
) -> Iterator[None]:
    """Return the recorded results instead of computing them.

    Calls beyond the recorded ones are computed.

    Args:
        detector: The detector.
        results: Results from :func:`record_results`.
        assignment: Whether to reuse the assigners' results.
        start_level: Dense heads reuse their results on levels before this index, without gradient.
    """

    def reusing(key: str, function: Callable[..., Any]) -> Callable[..., Any]:
        recorded = iter(enumerate(results[key]))
        is_assigner = key.endswith('.assign')

        def reuse(*args: Any, **kwargs: Any) -> Any:
            index, result = next(recorded, (None, None))
            if index is None or not (is_assigner or index < start_level):
                return function(*args, **kwargs)
            # samplers change assignments in place
            return copy.copy(result) if is_assigner else map_tensors(Tensor.detach, result)

        return reuse

    functions = _assigners(detector) if assignment else {}
    if start_level:
        functions |= _single_levels(detector)
    with _replaced(functions, reusing):
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
    """Yield the heads' modules, except those for proposals."""
    for name, child in detector.named_children():
        if name.endswith('head') and name != 'roi_head':
            yield from child.named_modules(prefix=name)


def _assigners(detector: BaseDetector) -> dict[str, Any]:
    """Find the assigners, each once."""
    found: dict[int, tuple[str, Any]] = {}
    for path, module in _dense_parts(detector):
        for name, value in vars(module).items():
            if hasattr(value, 'assign'):
                found.setdefault(id(value), (f'{path}.{name}.assign', value))
    return dict(found.values())


def _single_levels(detector: BaseDetector) -> dict[str, nn.Module]:
    """Find the dense heads that process levels one by one."""
    return {
        f'{path}.forward_single': module
        for path, module in _dense_parts(detector)
        if isinstance(module, BaseDenseHead) and hasattr(module, 'forward_single')
    }
