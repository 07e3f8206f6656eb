"""What a config adds to a stock one to distill its detector; each recipe is a module.

A config imports one and uses its two parts::

    _base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'

    from mmdet_sssd.recipes import gentle as recipe

    custom_imports = dict(imports=['mmdet_sssd'], allow_failed_imports=False)
    model = dict(recipe.model, _delete_=True, student=_base_.model)
    default_hooks = recipe.hooks

``wrap``, the arms of ``compare`` and this package's configs do the same. Those of :data:`OUTSIDE` need
``model.teachers`` beside them, of the names that they say.
"""

import copy
from types import ModuleType, SimpleNamespace

from . import backbone, gentle, lgd, paper, run, sad, semi, structural_kd


def _as_shipped(*recipes: ModuleType) -> dict[str, SimpleNamespace]:
    """Copy recipes, since a config may change the dicts of the one that it imports."""
    return {
        module.__name__.rpartition('.')[2]: SimpleNamespace(
            model=copy.deepcopy(module.model),
            hooks=copy.deepcopy(module.hooks),
            TEACHER=getattr(module, 'TEACHER', None),
        )
        for module in recipes
    }


RECIPES = _as_shipped(gentle, paper, lgd)
"""Recipes with an implicit teacher."""
OUTSIDE = _as_shipped(structural_kd, sad, semi, backbone)
"""Recipes with a teacher from outside."""

__all__ = [
    'OUTSIDE',
    'RECIPES',
    'backbone',
    'gentle',
    'lgd',
    'paper',
    'run',
    'sad',
    'semi',
    'structural_kd',
]
