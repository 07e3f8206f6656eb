"""Checks settings that mmengine would ignore, or fail on after the first epoch."""

import difflib
import inspect
import re
from collections.abc import Mapping
from itertools import chain
from typing import Any

from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS, MODELS
from mmengine.config import Config
from mmengine.runner import Runner

from ..config_tree import class_of, nested_configs, starts_pretrained, value_at
from ..datasets import VARIABLES, evaluator_configs
from ..errors import ConfigError, check, did_you_mean, is_number, warn
from ..models import Distiller
from ..models.replay import FEATURE_MODULES

OF_TOOLS = ('auto_scale_lr', 'find_unused_parameters', 'runner_type', 'tta_model', 'tta_pipeline')
OF_RUNNERS = (
    'activation_checkpointing',
    'compile',
    'efficient_conv_bn_eval',
    'model_wrapper_cfg',
    'sync_bn',
)
KNOWN = {*inspect.signature(Runner).parameters, *OF_TOOLS, *OF_RUNNERS, 'custom_imports'}
"""Keys that mmengine and mmdet read."""

HOOKS_OF_MMENGINE = (
    'runtime_info',
    'timer',
    'sampler_seed',
    'logger',
    'param_scheduler',
    'checkpoint',
)
"""Its default hooks; the only ones that it leaves out where a config sets them to None."""

LENGTHS = ('max_epochs', 'max_iters', 'val_interval')
WHOLE_FLOATS = ('train_cfg.max_epochs', 'train_cfg.max_iters')  # as 9e4, which mmengine accepts
LEARNING_RATE = 'optim_wrapper.optimizer.lr'
SIMILAR = 0.85  # from here on a key is a misspelt one; mmdet's own configs have none like that
BOX_METRICS = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')


def check_settings(cfg: Config, stages: tuple[str, ...]) -> None:
    """Check a config's names of keys, hooks, length, batch sizes, learning rate, and best metric.

    Raises:
        ConfigError: if a model, a hook's type or the metric of ``save_best`` is missing; if a key is a
            misspelt one of mmengine's; if a length or batch size is not a whole number of 1 or more;
            if the learning rate is no number; or ``activation_checkpointing`` names a distilled head.
    """
    if value_at(cfg, 'model.type') is None:
        raise ConfigError('the config has no model.type; accepted: the whole config of a detector')
    known = inspect.signature(Runner).parameters
    for key in cfg:
        found = difflib.get_close_matches(key, known, n=1, cutoff=SIMILAR)
        if found and key not in known and f'{found[0]}_' not in key and f'_{found[0]}' not in key:
            raise ConfigError(
                f'the config has {key}, which nothing reads; if it is {found[0]}, write so, else give '
                'it another name'
            )
    check('load_from', cfg.get('load_from'), cfg.get('load_from') != '', 'a checkpoint, or None')
    hooks = cfg.get('default_hooks') or {}
    for name, hook in hooks.items():
        hint = did_you_mean(name, [x for x in hooks if hooks[x] is not None])
        if hook is None and hint and name not in HOOKS_OF_MMENGINE:
            raise ConfigError(f'default_hooks.{name} is None, which leaves out no hook{hint}')
        if isinstance(hook, dict) and 'type' not in hook:
            raise ConfigError(
                f'default_hooks.{name} has no type; found {dict(hook)}. The config inherits no hook of '
                'that name, so give its type, or the name of the hook to change'
            )
    lengths = {f'{stage}_dataloader.batch_size' for stage in stages}
    if 'train' in stages:
        lengths |= {f'train_cfg.{key}' for key in LENGTHS}
        _check_best(cfg)
        _check_heads_are_not_recomputed(cfg)
        _warn_of_frozen_stages(cfg)
    for key in sorted(lengths):
        value = value_at(cfg, key)
        is_whole = isinstance(value, int) or (
            key in WHOLE_FLOATS and isinstance(value, float) and value.is_integer()
        )
        is_length = value is None or (is_whole and value >= 1)
        check(key, value, is_length, 'a whole number >= 1')
    if 'train' in stages and (rate := value_at(cfg, LEARNING_RATE)) is not None:
        check(LEARNING_RATE, rate, is_number(rate), 'a number >= 0')


def _warn_of_frozen_stages(cfg: Config) -> None:
    """Warn of layers that stay at random weights, as where ``init_cfg`` was set to None alone."""
    if cfg.get('resume') or starts_pretrained(cfg):
        return
    for key, part in nested_configs(cfg.model, 'model'):
        if is_number(stages := part.get('frozen_stages', -1)):
            warn(
                f'{key}.frozen_stages is {stages}, but no weights are loaded (init_cfg, load_from), so '
                f'that these layers stay random; set {key}.frozen_stages=-1 and norm_eval=False, or '
                'give weights'
            )


def _check_heads_are_not_recomputed(cfg: Config) -> None:
    """Refuse mmengine's activation checkpointing where the distiller itself refuses ``with_cp``."""
    names = cfg.get('activation_checkpointing') or []
    model = class_of(cfg.model, MODELS)
    if not (isinstance(model, type) and issubclass(model, Distiller)):
        return
    for name in [names] if isinstance(names, str) else names:
        part = name.removeprefix('student.').partition('.')[0]
        accepted = part in (*FEATURE_MODULES, 'teachers', 'terms')
        what = 'parts of the backbone or neck; distilling repeats or records what heads do'
        check('activation_checkpointing', name, accepted, what)


def _check_best(cfg: Config) -> None:
    """Check that the metric of the best checkpoint is one of COCO's, if only these are evaluated."""
    evaluators = [x for _, x in evaluator_configs(cfg, 'val_evaluator')]
    metrics = [coco_metrics(x) for x in evaluators]
    if not all(metrics) or not {'bbox', 'segm'}.issuperset(chain(*metrics)):
        return  # others' names are not known here
    classwise = [re.escape(_prefix(x)) for x in evaluators if x.get('classwise')]
    known = ['auto', *(name for x in evaluators for name in _names_of_metrics(x))]
    hooks = [*(cfg.get('default_hooks') or {}).values(), *(cfg.get('custom_hooks') or [])]
    for wanted in (x.get('save_best') or [] for x in hooks if isinstance(x, dict)):
        for name in [wanted] if isinstance(wanted, str) else wanted:
            is_known = name in known
            is_known |= any(re.fullmatch(f'{x}/.+_precision', name) for x in classwise)
            check('save_best of default_hooks.checkpoint', name, is_known, ', '.join(known))


def coco_metrics(evaluator: dict) -> list[str]:
    """List what a CocoMetric's config evaluates, such as ``bbox``; empty for other metrics."""
    if class_of(evaluator, METRICS) is not CocoMetric:
        return []
    metrics = evaluator.get('metric', 'bbox')
    return [metrics] if isinstance(metrics, str) else list(metrics)


def _names_of_metrics(evaluator: dict) -> list[str]:
    """List the names that a CocoMetric's values have in logs."""
    items = evaluator.get('metric_items') or BOX_METRICS
    return [
        f'{_prefix(evaluator)}/{kind}_{item}' for kind in coco_metrics(evaluator) for item in items
    ]


def _prefix(evaluator: dict) -> str:
    return evaluator.get('prefix') or 'coco'


def check_overrides(cfg: Config, overrides: Mapping[str, Any]) -> None:
    """Refuse changes that would have no effect.

    Modules refuse unknown settings when they are built; this checks the keys above them, which
    mmengine adds to the config without question.

    Raises:
        ConfigError: if mmengine does not read the first key, such as one of the config's variables; if
            an inner key is new, gets no ``type``, and is a hook or resembles an existing key; or if a
            hook to be left out is not there.
    """
    for key, value in overrides.items():
        first, *rest = key.split('.')
        if first not in KNOWN:
            raise _without_effect(cfg, key, first)
        place = first
        for name in rest:
            found = value_at(cfg, place)
            if found is not None and not isinstance(found, (dict, list, tuple)):
                raise ConfigError(f'{key}: {place} is {found!r}, which has no settings')
            place = f'{place}.{name}'
            is_new = isinstance(found, dict) and name not in found
            is_hook = key == f'default_hooks.{name}' and name not in HOOKS_OF_MMENGINE
            is_incomplete = place != key or (is_hook and value is None)
            if is_new and is_incomplete and f'{place}.type' not in overrides:
                hint = did_you_mean(name, found)
                if hint or first == 'default_hooks':
                    raise ConfigError(
                        f'the config has no {place}{hint} (a new one needs {place}.type)'
                    )


def _without_effect(cfg: Config, key: str, first: str) -> ConfigError:
    """Say what to change instead of a key that mmengine does not read."""
    places = [
        f'{place}.{first}' for place, x in nested_configs(cfg.to_dict()) if place and first in x
    ]
    places = ' or '.join(places[:3])
    if first not in cfg:
        hint = did_you_mean(first, KNOWN) or (places and f'; did you mean {places}?')
        return ConfigError(f'{key}: the config has no {first}{hint}')
    variable = f'SSSD_{first.upper()}'
    if variable in VARIABLES and 'train_ann' in cfg:  # a config for the user's own data
        advice = f'set {variable} in the environment'
    else:
        advice = f'change {places or "what it was used for"}, or the file'
    return ConfigError(
        f'{key}: the config has used its variable {first} by the time it is changed; {advice}'
    )
