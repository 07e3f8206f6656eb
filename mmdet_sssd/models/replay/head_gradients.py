"""Weighs the gradients that a pass through heads sends into their parameters."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmdet.models import BaseDetector
from torch import Tensor, nn

from ..weights_by_name import Weights, find_weight
from .heads import head_parameters


@contextmanager
def weighed_gradients(detector: BaseDetector, weights: Weights) -> Iterator[None]:
    """Multiply the gradients that computations in the context send into the heads' parameters.

    Gradients of features stay as they are. A parameter's gradient of weight 0 is not computed.

    Args:
        detector: The detector.
        weights: Weights by the parameters' names.
    """
    stand_ins: dict[nn.Parameter, Tensor] = {}  # one per parameter, which modules may share
    replaced = []
    for name, module, key in list(head_parameters(detector)):
        parameter, weight = module._parameters[key], find_weight(name, weights)
        if weight != 1 and parameter.requires_grad and torch.is_grad_enabled():
            if parameter not in stand_ins:
                stand_ins[parameter] = _weighed(parameter, weight)
            replaced.append((module, key, parameter))
    for module, key, parameter in replaced:
        module._parameters[key] = stand_ins[parameter]
    try:
        yield
    finally:
        for module, key, parameter in replaced:
            module._parameters[key] = parameter


def _weighed(parameter: nn.Parameter, weight: float) -> Tensor:
    if weight == 0:
        return parameter.detach()
    stand_in = parameter.view_as(parameter)
    stand_in.register_hook(lambda grad: grad * weight)
    return stand_in
