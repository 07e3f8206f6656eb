"""Replay: a detector computes its loss or predictions on given features, without lasting effects.

Contexts for one call of ``detector.loss`` or ``detector.predict``, to be combined. They replace what
the detector's methods use, not its code, so that they serve every detector::

    with state_restored(student), given_feats(student, feats):
        losses = student.loss(batch_inputs, fresh_samples(batch_data_samples))
"""

import copy
import random
import re
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from mmdet.models import BaseDetector
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.task_modules.samplers import MaskPseudoSampler, PseudoSampler
from mmdet.structures import DetDataSample
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

FEATURE_MODULES = ('backbone', 'neck', 'data_preprocessor')  # not run in a replay

Results = dict[str, list[Any]]
"""What was recorded, in the order of calls, by a function's path, such as ``bbox_head.get_targets``:
for priors and targets a :class:`_Call`, for levels and assignments the result alone."""

Factors = Mapping[str, float]
"""Factors by regular expression: that of the first found in a name; without any, 1."""


@dataclass
class DetectorOutputs:
    """Outputs of a detector for B images, as far as distillation compares them.

    Attributes:
        feats: Feature levels of shape (B, C_p, h_p, w_p).
        head: Return value of a dense ``bbox_head``'s forward, such as (logits, box predictions), each
            a list with a tensor of shape (B, channels, h_p, w_p) per level. None if no term needs it
            or the detector has no such head.
        cls_scores: Classification logits of a dense head with independent sigmoids, of shape
            (B, h_p, w_p, A, K) per level, for A anchors per pixel and K classes; None for other heads
            or if no term needs them.
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


def head_modules(detector: BaseDetector) -> dict[str, nn.Module]:
    """Find a detector's modules outside feature extraction, by path; the first is the detector."""
    modules = detector.named_modules()
    return {path: x for path, x in modules if path.partition('.')[0] not in FEATURE_MODULES}


def head_parameters(detector: BaseDetector) -> Iterator[tuple[str, nn.Module, str]]:
    """Yield a detector's parameters outside feature extraction.

    Yields:
        The parameter's name in the detector, the module that holds it, and its name there; a shared
        parameter once per module.
    """
    for path, module in head_modules(detector).items():
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


# --- Given features and scaled gradients


class _GivenFeatures:
    """Replaces ``extract_feat``: an object, as compiled code is not valid for another function."""

    def __init__(self, feats: Sequence[Tensor]) -> None:
        self.feats = feats

    def __call__(self, *_args: Any, **_kwargs: Any) -> Sequence[Tensor]:
        return type(self.feats)(self.feats)


@contextmanager
def given_feats(detector: BaseDetector, feats: Sequence[Tensor]) -> Iterator[None]:
    """Let ``detector.extract_feat`` return the given levels of shape (B, C_p, h_p, w_p)."""
    shadowed = vars(detector).get('extract_feat')  # the instance's own, if other code set one
    detector.extract_feat = _GivenFeatures(feats)
    try:
        yield
    finally:
        del detector.extract_feat
        if shadowed is not None:
            detector.extract_feat = shadowed


def find_factor(name: str, factors: Factors) -> float:
    """Look up the factor of a name."""
    return next((factor for pattern, factor in factors.items() if re.search(pattern, name)), 1.0)


@contextmanager
def head_grad_scaled(detector: BaseDetector, factors: Factors) -> Iterator[None]:
    """Multiply the gradients that computations in the context send into the heads' parameters.

    Gradients of features stay as they are. A parameter's gradient of factor 0 is not computed.

    Args:
        detector: The detector.
        factors: Factors >= 0 by regular expression on the parameters' names.
    """
    originals = []
    try:
        for name, module, key in [*head_parameters(detector)]:
            parameter, factor = module._parameters[key], find_factor(name, factors)
            if factor != 1 and parameter.requires_grad and torch.is_grad_enabled():
                originals.append((module, key, parameter))
                module._parameters[key] = _with_scaled_grad(parameter, factor)
        yield
    finally:
        for module, key, parameter in originals:
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
    modes = {module: module.training for module in head_modules(detector).values()}
    for name, child in detector.named_children():
        if name not in FEATURE_MODULES:
            child.train()
    norms = [x for x in modes if isinstance(x, _BatchNorm) and x.training and not modes[x]]
    for module, was_training in modes.items():
        module.training = was_training
    return norms


# --- Reused results

ASSIGN, TARGETS = 'assign', 'get_targets'
ONE_LEVEL = 'forward_single'  # a dense head on one feature level
PRIORS = 'grid_priors', 'valid_flags'


class _Call:
    """A recorded call: everything that its arguments held, and what it returned."""

    def __init__(self, leaves: list[Any], result: Any) -> None:
        self.leaves, self.result, self.versions = leaves, result, _versions(result)

    def is_repeated_by(self, *arguments: Any) -> bool:
        """Tell whether they hold the very same tensors, and the result was not changed since."""
        pairs = zip_longest(_leaves(arguments), self.leaves)
        return all(_is_same(x, y) for x, y in pairs) and _versions(self.result) == self.versions


def _leaves(value: Any) -> Iterator[Any]:
    """Yield everything nested in containers and data elements."""
    if isinstance(value, BaseDataElement):
        value = dict(value.all_items())
    if isinstance(value, dict):
        value = [*value.items()]
    if isinstance(value, (list, tuple)):
        for x in value:
            yield from _leaves(x)
    else:
        yield value


def _versions(value: Any) -> list[int]:
    """List how often each tensor was changed in place."""
    return [x._version for x in _leaves(value) if isinstance(x, Tensor)]


def _is_same(x: Any, y: Any) -> bool:
    is_value = type(x) is type(y) and not isinstance(x, Tensor)
    return x is y or (is_value and np.array_equal(x, y))


@contextmanager
def results_recorded(detector: BaseDetector) -> Iterator[Results]:
    """Record a detector's priors, targets and assignments, and its dense heads' outputs by level."""
    results: Results = defaultdict(list)

    def record(key: str, owner: Any, function: Callable, args: tuple, kwargs: dict) -> Any:
        if key.endswith((ONE_LEVEL, ASSIGN)):
            results[key].append(function(*args, **kwargs))
            return results[key][-1]
        leaves, attributes = [*_leaves((args, kwargs))], [*vars(owner).values()]
        result = function(*args, **kwargs)
        # Reuse would skip what a call sets on its owner, so such calls are not recorded.
        if [*map(id, attributes)] == [*map(id, vars(owner).values())]:
            results[key].append(_Call(leaves, result))
        return result

    with _methods_replaced(detector, record):
        yield results


@contextmanager
def results_reused(
    detector: BaseDetector, results: Results, reuse_assignments: bool, start_level: int
) -> Iterator[None]:
    """Answer calls from what was recorded, instead of computing them again.

    Priors and targets are reused where a call is given the very same tensors, so targets that depend on
    predictions are made anew. A head that draws samples draws new ones from the same assignment.

    Args:
        detector: The detector.
        results: Results from :func:`results_recorded`.
        reuse_assignments: Whether to reuse them call by call, even those by predictions.
        start_level: Dense heads return their recorded results on levels before this index, without
            gradient.
    """
    num_calls: Counter[str] = Counter()
    is_drawing = False
    unused = defaultdict(list, {key: [*calls] for key, calls in results.items()})

    def reuse(key: str, owner: Any, function: Callable, args: tuple, kwargs: dict) -> Any:
        nonlocal is_drawing
        index, num_calls[key] = num_calls[key], num_calls[key] + 1
        if key.endswith(ONE_LEVEL):
            if index >= min(start_level, len(results[key])):
                return function(*args, **kwargs)
            return map_tensors(Tensor.detach, results[key][index])
        if key.endswith(ASSIGN):
            if not (reuse_assignments or is_drawing) or index >= len(results[key]):
                return function(*args, **kwargs)
            return copy.copy(results[key][index])  # samplers change assignments in place
        call = next((x for x in unused[key] if x.is_repeated_by(args, kwargs)), None)
        if call is None:
            return function(*args, **kwargs)
        # A recorded call answers one: heads tell targets apart by identity.
        unused[key].remove(call)
        if not _draws_samples(owner):
            return map_tensors(lambda x: x, call.result)  # in new lists, which the head may change
        is_drawing = True
        try:
            return function(*args, **kwargs)
        finally:
            is_drawing = False

    with _methods_replaced(detector, reuse):
        yield


class _StandIn:
    """Stands in for a method, as :class:`_GivenFeatures` does."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    @torch.compiler.disable
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


@contextmanager
def _methods_replaced(detector: BaseDetector, replacement: Callable[..., Any]) -> Iterator[None]:
    """Replace a detector's functions of priors, targets and assignments, and of heads on one level.

    Args:
        detector: The detector.
        replacement: Called as ``replacement(key, owner, function, args, kwargs)``, with the function's
            path in the detector, which ends with its name.
    """

    def stand_in(key: str, owner: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            return replacement(key, owner, function, args, kwargs)

        return call if key.endswith(ONE_LEVEL) else _StandIn(call)  # convolutions stay compiled

    places = [(key, x, key.rpartition('.')[2]) for key, x in _reusable(detector).items()]
    # the instance's attributes that hide the class's methods, if other code set some
    shadowed = [(x, name, vars(x)[name]) for _, x, name in places if name in vars(x)]
    for key, owner, name in places:
        setattr(owner, name, stand_in(key, owner, getattr(owner, name)))
    try:
        yield
    finally:
        for _, owner, name in places:
            delattr(owner, name)
        for owner, name, function in shadowed:
            setattr(owner, name, function)


def _reusable(detector: BaseDetector) -> dict[str, Any]:
    """Find the functions whose results may be reused: their paths in the detector, and their owners.

    The owners are modules of the heads, those of an R-CNN's second stage excepted, and the modules'
    prior generators and assigners. One that is found at several paths is listed under the first.
    """
    found: dict[tuple[int, str], tuple[str, Any]] = {}
    for name, head in detector.named_children():
        if not name.endswith('head') or name == 'roi_head':
            continue
        for path, module in head.named_modules(prefix=name):
            functions = [(path, module, TARGETS)]
            functions += [(path, module, ONE_LEVEL)] * isinstance(module, BaseDenseHead)
            for key, x in vars(module).items():
                functions += [(f'{path}.{key}', x, function) for function in (*PRIORS, ASSIGN)]
            for place, owner, function in functions:
                if callable(getattr(owner, function, None)):
                    found.setdefault((id(owner), function), (f'{place}.{function}', owner))
    return dict(found.values())


def _draws_samples(module: nn.Module) -> bool:
    sampler = getattr(module, 'sampler', None)
    return sampler is not None and not isinstance(sampler, (PseudoSampler, MaskPseudoSampler))


# --- Restored state

MODULE_INTERNALS = frozenset(vars(nn.Module())) - {'_buffers'}
OPAQUE = (np.ndarray, np.random.Generator, np.random.RandomState, random.Random, torch.Generator)
SHARED = (nn.Module, nn.Parameter, type, FunctionType, BuiltinFunctionType, MethodType, ModuleType)
"""What a copy of a head's state copies whole, and what it does not copy."""


@contextmanager
def state_restored(detector: BaseDetector) -> Iterator[None]:
    """Restore the buffers and attributes of a detector and its heads at the end of the context.

    This covers BN statistics, running counts, and everything nested in attributes: containers, arrays,
    generators, and objects such as assigners and samplers. The context works on copies, so tensors
    saved by autograd are not written to. PyTorch's random state on the CPU and on the detector's GPU
    is restored, too. Not restored: parameters and their gradients, and feature extraction, which a
    replay does not run.
    """
    device = next(detector.parameters()).device
    before = [(vars(x), dict(vars(x))) for x in head_modules(detector).values()]
    memo: dict[int, Any] = {}
    for attributes, values in before:
        for name, value in values.items():
            if name not in MODULE_INTERNALS:
                attributes[name] = _copied(value, memo)
    try:
        with torch.random.fork_rng([device] if device.type == 'cuda' else []):
            yield
    finally:
        for attributes, values in before:
            attributes.clear()
            attributes.update(values)


@torch.compiler.disable
def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """Copy whatever can be changed in place. ``memo`` has earlier copies by identity."""
    if isinstance(value, SHARED) or id(value) in memo:
        return memo.get(id(value), value)
    if isinstance(value, tuple):
        items = [_copied(x, memo) for x in value]
        if all(x is y for x, y in zip(items, value, strict=True)):
            return value
        return type(value)(*items) if hasattr(value, '_fields') else type(value)(items)
    memo[id(value)] = copied = _shallow_copy(value)
    if copied is value:
        return value
    if isinstance(value, dict):
        for key, item in value.items():
            copied[key] = _copied(item, memo)
    elif isinstance(value, (list, deque)):
        for index, item in enumerate(value):
            copied[index] = _copied(item, memo)
    elif not isinstance(value, (Tensor, set, *OPAQUE)):
        vars(copied).update((name, _copied(item, memo)) for name, item in vars(value).items())
    return copied


def _shallow_copy(value: Any) -> Any:
    """Copy a value but not what it holds; the value itself if it cannot change or be copied."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, OPAQUE):
        return copy.deepcopy(value)
    if not isinstance(value, (dict, list, deque, set)) and not hasattr(value, '__dict__'):
        return value
    try:
        return copy.copy(value)  # itself for a singleton, such as a logger
    except Exception:  # such as a system handle
        return value
