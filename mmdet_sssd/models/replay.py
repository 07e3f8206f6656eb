"""Replay: a detector computes its loss or predictions on given features, without lasting effects.

Contexts for one call of ``detector.loss`` or ``detector.predict``, stacked where they are used. Heads
run unchanged in them, so one code path serves every detector::

    with given_feats(student, feats), state_restored(student):
        losses = student.loss(batch_inputs, fresh_samples(batch_data_samples))
"""

import copy
import random
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from mmdet.models import BaseDetector
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.structures import DetDataSample
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .weights_by_name import Weights, find_weight

FEATURE_MODULES = ('backbone', 'neck', 'data_preprocessor')  # not run in a replay

Results = dict[str, list[Any]]
"""Return values of functions, call by call, by the functions' paths in a detector."""


@dataclass
class DetectorOutputs:
    """Outputs of a detector for B images, as far as distillation compares them.

    Attributes:
        feats: Feature levels of shape (B, C_p, h_p, w_p).
        head: Return value of a dense ``bbox_head``'s forward, such as (logits, box predictions), each
            a list with a tensor of shape (B, channels, h_p, w_p) per level. None if no term needs it
            or the detector has no such head.
        cls_scores: Classification logits of a dense head with independent sigmoids, of shape
            (B, h_p, w_p, A, K) per level, for A anchors per pixel and K classes; None for other heads.
        anchor_flags: Returns which anchors the head's classification loss counts, bool of shape
            (B, h_p, w_p, A) per level, or None if it counts all. Raises a ConfigError if this cannot
            be determined.
    """

    feats: Sequence[Tensor]
    head: Sequence[Any] | None = None
    cls_scores: Sequence[Tensor] | None = None
    anchor_flags: Callable[[], Sequence[Tensor] | None] = lambda: None

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the feature levels."""
        return tuple(x.shape[1] for x in self.feats)

    def detach(self) -> 'DetectorOutputs':
        """Copy the outputs without gradient."""
        parts = (map_tensors(Tensor.detach, x) for x in (self.feats, self.head, self.cls_scores))
        return DetectorOutputs(*parts, self.anchor_flags)


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Apply a function to the tensors in nested tuples and lists; keep other values."""
    if isinstance(value, (tuple, list)):
        return type(value)(map_tensors(function, x) for x in value)
    return function(value) if isinstance(value, Tensor) else value


def head_modules(detector: BaseDetector) -> list[nn.Module]:
    """List a detector's modules outside feature extraction, outer ones first."""
    heads = [child for name, child in detector.named_children() if name not in FEATURE_MODULES]
    return [module for head in heads for module in head.modules()]


def head_parameters(detector: BaseDetector) -> Iterator[tuple[str, nn.Module, str]]:
    """Yield a detector's parameters outside feature extraction.

    Yields:
        The parameter's name in the detector, the module that holds it, and its name there; a shared
        parameter once per module.
    """
    for path, module in detector.named_modules():
        if path.partition('.')[0] not in FEATURE_MODULES:
            for key, parameter in module._parameters.items():
                if parameter is not None:
                    yield f'{path}.{key}'.removeprefix('.'), module, key


@torch.compiler.disable
def fresh_samples(batch_data_samples: Sequence[DetDataSample]) -> list[DetDataSample]:
    """Copy data samples as deeply as heads change them: containers are copied, tensors shared."""
    copies = [sample.clone() for sample in batch_data_samples]
    for sample in copies:
        for name, value in sample.items():
            if isinstance(value, BaseDataElement):
                setattr(sample, name, value.clone())
    return copies


# --- What the heads compute on


class _GivenFeatures:
    """Replaces ``extract_feat``; compiled code stays valid for an object, not for a new function."""

    def __init__(self, feats: Sequence[Tensor]) -> None:
        self.feats = feats

    def __call__(self, *_args: Any, **_kwargs: Any) -> Sequence[Tensor]:
        return type(self.feats)(self.feats)


@contextmanager
def given_feats(detector: BaseDetector, feats: Sequence[Tensor]) -> Iterator[None]:
    """Let ``detector.extract_feat`` return the given levels of shape (B, C_p, h_p, w_p)."""
    shadowed = vars(detector).get('extract_feat')  # only set if other code replaced it
    detector.extract_feat = _GivenFeatures(feats)
    try:
        yield
    finally:
        del detector.extract_feat
        if shadowed is not None:
            detector.extract_feat = shadowed


@contextmanager
def head_grad_scaled(detector: BaseDetector, factors: Weights) -> Iterator[None]:
    """Multiply the gradients that computations in the context send into the heads' parameters.

    Gradients of features stay as they are. A parameter's gradient of factor 0 is not computed.

    Args:
        detector: The detector.
        factors: Factors >= 0 by regular expression on the parameters' names.
    """
    # Modules may share a parameter, under names with different factors.
    stand_ins: dict[tuple[nn.Parameter, float], Tensor] = {}
    replaced = []
    for name, module, key in list(head_parameters(detector)):
        parameter, factor = module._parameters[key], find_weight(name, factors)
        if factor != 1 and parameter.requires_grad and torch.is_grad_enabled():
            if (parameter, factor) not in stand_ins:
                stand_ins[parameter, factor] = _with_scaled_grad(parameter, factor)
            replaced.append((module, key, parameter, stand_ins[parameter, factor]))
    for module, key, _, stand_in in replaced:
        module._parameters[key] = stand_in
    try:
        yield
    finally:
        for module, key, parameter, _ in replaced:
            module._parameters[key] = parameter


def _with_scaled_grad(parameter: nn.Parameter, factor: float) -> Tensor:
    if factor == 0:
        return parameter.detach()
    stand_in = parameter.view_as(parameter)
    stand_in.register_hook(lambda grad: grad * factor)
    return stand_in


@contextmanager
def batch_stats_used(detector: BaseDetector) -> Iterator[None]:
    """Let the heads' batch norms in eval mode normalise by the batch where they would in training.

    Their running statistics belong to the student's features. Statistics are not updated or
    synchronised. Maps with a single value per channel still use the running statistics.
    """
    norms = {
        module: (module.running_mean, module.running_var)
        for module in _norms_by_batch_in_training(detector)
    }

    def hide(module: _BatchNorm, inputs: tuple[Tensor]) -> None:
        if inputs[0].numel() > inputs[0].shape[1]:
            module.running_mean = module.running_var = None

    def restore(module: _BatchNorm, *_: Any) -> None:
        module.running_mean, module.running_var = norms[module]

    handles = [module.register_forward_pre_hook(hide) for module in norms]
    handles += [module.register_forward_hook(restore, always_call=True) for module in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _norms_by_batch_in_training(detector: BaseDetector) -> list[_BatchNorm]:
    """List the heads' batch norms that are in eval mode but would be in training mode in training."""
    modules = head_modules(detector)
    modes = [module.training for module in modules]
    for name, child in detector.named_children():
        if name not in FEATURE_MODULES:
            child.train()
    found = [
        module
        for module, was_training in zip(modules, modes, strict=True)
        if isinstance(module, _BatchNorm) and module.training and not was_training
    ]
    for module, was_training in zip(modules, modes, strict=True):
        module.training = was_training
    return found


# --- What the heads do not compute again


@contextmanager
def results_recorded(detector: BaseDetector) -> Iterator[Results]:
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
def results_reused(
    detector: BaseDetector, results: Results, assignment: bool, start_level: int
) -> Iterator[None]:
    """Return the recorded results instead of computing them.

    Calls beyond the recorded ones are computed.

    Args:
        detector: The detector.
        results: Results from :func:`results_recorded`.
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


# --- What the heads do not keep

MODULE_INTERNALS = frozenset(vars(nn.Module())) - {'_buffers'}
WHOLE = (np.ndarray, np.random.Generator, np.random.RandomState, random.Random, torch.Generator)
CODE = (nn.Module, nn.Parameter, type, FunctionType, BuiltinFunctionType, MethodType, ModuleType)


@contextmanager
def state_restored(detector: BaseDetector) -> Iterator[None]:
    """Restore the heads at the end of the context, gradients excepted.

    This covers buffers (BN statistics) and plain attributes (running counts), and everything nested in
    them: containers, arrays, generators, and objects such as assigners and samplers. The context works
    on copies, so tensors saved by autograd are not written to; parameters are left out.
    """
    before = [(vars(module), dict(vars(module))) for module in head_modules(detector)]
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
        copied = value.detach().clone()
    elif isinstance(value, WHOLE):
        copied = copy.deepcopy(value)
    elif isinstance(value, (dict, list, deque, set)):
        return _copied_container(value, memo)
    elif isinstance(value, tuple):
        items = [_copied(x, memo) for x in value]
        same = all(x is y for x, y in zip(items, value, strict=True))
        copied = value if same else _rebuilt_tuple(value, items)
    elif hasattr(value, '__dict__'):
        return _copied_object(value, memo)
    else:
        return value
    memo[id(value)] = copied
    return copied


def _copied_container(value: Any, memo: dict[int, Any]) -> Any:
    memo[id(value)] = copied = copy.copy(value)
    if isinstance(value, dict):
        for key, item in value.items():
            copied[key] = _copied(item, memo)
    elif not isinstance(value, set):  # its items are hashable, so they do not change
        for index, item in enumerate(value):
            copied[index] = _copied(item, memo)
    return copied


def _copied_object(value: Any, memo: dict[int, Any]) -> Any:
    try:
        copied = copy.copy(value)
    except Exception:  # such as a system handle: shared
        return value
    if copied is value:  # a singleton, such as a logger
        return value
    memo[id(value)] = copied
    for name, item in vars(value).items():
        vars(copied)[name] = _copied(item, memo)
    return copied


def _rebuilt_tuple(value: tuple, items: list) -> tuple:
    return type(value)(*items) if hasattr(value, '_fields') else type(value)(items)
