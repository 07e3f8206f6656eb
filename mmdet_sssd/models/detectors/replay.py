"""Runs a detector's own loss on given features, and without a trace where that is asked for."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch.nn as nn
from mmdet.models import BaseDetector
from mmdet.structures import DetDataSample
from mmengine.structures import BaseDataElement
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

FEATURE_MODULES = ('backbone', 'neck', 'data_preprocessor')  # what a replayed loss never runs
MODULE_INTERNALS = frozenset(vars(nn.Module())) - {'_buffers'}


@contextmanager
def replay_features(detector: BaseDetector, feats: Sequence[Tensor]) -> Iterator[None]:
    """Let ``detector.extract_feat`` return the given features inside the context.

    Args:
        detector: The detector whose loss is to be computed on them.
        feats: One map of shape (B, C, h, w) per feature level.
    """
    shadowed = vars(detector).get('extract_feat')  # set only if somebody else replaced it
    detector.extract_feat = lambda *_args, **_kwargs: type(feats)(feats)
    try:
        yield
    finally:
        if shadowed is None:
            del detector.extract_feat
        else:
            detector.extract_feat = shadowed


@contextmanager
def untouched_heads(detector: BaseDetector) -> Iterator[None]:
    """Undo, at the end of the context, what its heads' forward changed beside gradients.

    That is all buffers (BN statistics, running counts) and plain attributes (sampling histories,
    counters) of the modules that are no part of feature extraction, and of their assigners,
    samplers and other helpers. The context works on copies, so that tensors which autograd has
    saved are not written to.
    """
    before = [(vars(owner), dict(vars(owner))) for owner in _state_owners(detector)]
    for attributes, values in before:
        for name, value in values.items():
            if name == '_buffers':
                attributes[name] = {k: _copy(v) for k, v in value.items()}
            elif name not in MODULE_INTERNALS:
                attributes[name] = _copy(value)
    try:
        yield
    finally:
        for attributes, values in before:
            attributes.clear()
            attributes.update(values)


@contextmanager
def batch_statistics(detector: BaseDetector) -> Iterator[None]:
    """Let its heads in eval mode normalise by the batch where they do so in training.

    The running statistics of their batch norms are those of the student's features, which other
    features do not have. None are updated, and processes do not wait for each other. A map of a single
    value per channel is normalised by the running statistics after all.
    """
    norms = {
        module: (module.running_mean, module.running_var)
        for module in _normalised_by_the_batch(detector)
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


def fresh_samples(batch_data_samples: Sequence[DetDataSample]) -> list[DetDataSample]:
    """Copy data samples as deep as heads change them: tensors are shared, their holders are not."""
    copies = [sample.clone() for sample in batch_data_samples]
    for sample in copies:
        for name, value in sample.items():
            if isinstance(value, BaseDataElement):
                setattr(sample, name, value.clone())
    return copies


def take_images(outputs: Any, images: list[int] | None) -> Any:
    """Take some images' rows out of tensors whose first dimension is the batch.

    Args:
        outputs: A tensor, or tensors in (nested) tuples and lists.
        images: Indices of the images; None leaves everything as it is.
    """
    if images is None:
        return outputs
    if isinstance(outputs, (tuple, list)):
        return type(outputs)(take_images(x, images) for x in outputs)
    return outputs[images] if isinstance(outputs, Tensor) else outputs


def head_modules(detector: BaseDetector) -> list[nn.Module]:
    """List a detector's modules that are no part of feature extraction, outer ones first."""
    heads = [child for name, child in detector.named_children() if name not in FEATURE_MODULES]
    return [module for head in heads for module in head.modules()]


def _normalised_by_the_batch(detector: BaseDetector) -> list[_BatchNorm]:
    """List its heads' batch norms that training puts into training mode, if they are not in it."""
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


def _state_owners(detector: BaseDetector) -> list[Any]:
    """List the modules of a detector's heads and, once each, the mmdet objects that they hold."""
    owners = {id(module): module for module in head_modules(detector)}
    pending = list(owners.values())
    while pending:
        for value in vars(pending.pop()).values():
            for helper in value if isinstance(value, (list, tuple)) else [value]:
                if id(helper) not in owners and _is_helper(helper):
                    owners[id(helper)] = helper
                    pending.append(helper)
    return list(owners.values())


def _copy(value: Any) -> Any:
    """Copy what can be written to in place: tensors, and the outer layer of containers."""
    if isinstance(value, nn.Parameter):
        return value
    if isinstance(value, Tensor):
        return value.detach().clone()
    if type(value) in (list, dict, set):
        return copy.copy(value)
    return value


def _is_helper(value: Any) -> bool:
    return (
        type(value).__module__.startswith('mmdet.')
        and not isinstance(value, nn.Module)
        and hasattr(value, '__dict__')
    )
