"""Optimizer constructors that tell layers by parameter names, for students under a distiller."""

import copy
from typing import Any

import torch.nn as nn
from mmdet.engine.optimizers import LearningRateDecayOptimizerConstructor as StockLayerDecay
from mmdet.registry import OPTIM_WRAPPER_CONSTRUCTORS

from ..models import Distiller


class StudentNames:
    """Mixin that shows an optimizer constructor a distiller as the student it trains.

    Constructors with a rate for each layer tell layers by names such as ``backbone.stages.0``. In a
    distiller these stand under ``student.``, where no rule of theirs matches and every layer would
    get the rate of the heads, silently. With this mixin the student's parameters have the names and
    the settings that they have without distillation; what else is trained (``teachers.``, ``terms.``
    …) stands beside its heads. Other models are left as they are.

    Example:
        >>> @OPTIM_WRAPPER_CONSTRUCTORS.register_module(force=True)
        ... class LayerDecayConstructor(StudentNames, TheConstructorOfThatName):
        ...     pass
    """

    def add_params(self, params: list[dict], module: nn.Module, **kwargs: Any) -> None:
        """Append the parameter groups of a model to ``params``; see the constructor's own."""
        if isinstance(module, Distiller):
            module = _with_student_names(module)
        super().add_params(params, module, **kwargs)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module(force=True)
class LearningRateDecayOptimizerConstructor(StudentNames, StockLayerDecay):
    """Takes the place of mmdet's, for distillers too; a stock model gets what mmdet's gives it."""


def _with_student_names(distiller: Distiller) -> nn.Module:
    """Make a view of the student that has the distiller's other parts as further children."""
    view = copy.copy(distiller.student)
    own = {name: x for name, x in distiller.named_children() if name != 'student'}
    view._modules = distiller.student._modules | own
    return view
