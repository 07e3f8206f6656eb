"""Reads off an optimizer what holds for each parameter."""

from mmengine.optim import OptimWrapper
from torch import nn


def parameter_settings(optim_wrapper: OptimWrapper, model: nn.Module) -> dict[str, dict]:
    """Give each parameter's settings (lr, weight_decay …) by its name in the model."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: {
            key: value for key, value in group.items() if key not in ('params', 'param_names')
        }
        for group in optim_wrapper.optimizer.param_groups
        for parameter in group['params']
    }
