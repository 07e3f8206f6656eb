"""Optimizer constructors that recognise layers by parameter names, for distilled students."""

import copy
from typing import Any

import torch.nn as nn
from mmdet.engine.optimizers import LearningRateDecayOptimizerConstructor as StockLayerDecay
from mmdet.registry import OPTIM_WRAPPER_CONSTRUCTORS

from ..models import Distiller


class StudentNames:
    """Mixin that presents a distiller's student to an optimizer constructor under its stock names.

    Constructors with a rate per layer recognise layers by names such as ``backbone.stages.0``. In a
    distiller these names begin with ``student.``, no rule matches, and every layer silently gets the
    rate of the heads. With this mixin the student's parameters have their stock names and settings;
    other trained parameters (``teachers.``, ``terms.`` …) get the heads' settings. Other models are
    not affected.

    Example:
        >>> @OPTIM_WRAPPER_CONSTRUCTORS.register_module(force=True)
        ... class LayerDecayConstructor(StudentNames, TheConstructorOfThatName):
        ...     pass
    """

    def add_params(self, params: list[dict], module: nn.Module, **kwargs: Any) -> None:
        """Append a model's parameter groups to ``params``; see the constructor's own."""
        if isinstance(module, Distiller):
            module = _with_student_names(module)
        super().add_params(params, module, **kwargs)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module(force=True)
class LearningRateDecayOptimizerConstructor(StudentNames, StockLayerDecay):
    """Replaces mmdet's constructor, and supports distillers; stock models get the same settings."""


def _with_student_names(distiller: Distiller) -> nn.Module:
    """Make a view of the student with the distiller's other parts as further children."""
    view = copy.copy(distiller.student)
    own = {name: x for name, x in distiller.named_children() if name != 'student'}
    view._modules = distiller.student._modules | own
    return view
