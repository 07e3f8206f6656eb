"""Checks settings that mmengine would ignore, or fail on after the first epoch."""

import difflib
import inspect
from collections.abc import Iterator

from mmengine.config import Config
from mmengine.runner import Runner

from ..datasets import evaluator_configs
from ..errors import ConfigError, check

LENGTHS = ('max_epochs', 'max_iters', 'val_interval')
SIMILAR = 0.85  # from here on a key is a misspelt one; mmdet's own configs have none like that
BOX_METRICS = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')


def check_settings(cfg: Config, stages: tuple[str, ...]) -> None:
    """Check the names of a config's keys, hooks, the run's length, batch sizes, and the best metric.

    Args:
        cfg: The whole config.
        stages: What will be run: ``'train'``, ``'val'``, ``'test'``.

    Raises:
        ConfigError: if a key is a misspelt one of mmengine's, a hook has no type, a length or batch
            size is not a whole number of 1 or more, or ``save_best`` names a metric that no evaluator
            has.
    """
    _check_names(cfg)
    for name, hook in (cfg.get('default_hooks') or {}).items():
        if isinstance(hook, dict) and 'type' not in hook:
            raise ConfigError(
                f'default_hooks.{name} has no type; found {dict(hook)}. The config inherits no hook of '
                'that name, so give its type, or the name of the hook to change'
            )
    for stage in stages:
        loader = cfg.get(f'{stage}_dataloader') or {}
        lengths = {f'{stage}_dataloader.batch_size': loader.get('batch_size', 1)}
        if stage == 'train':
            settings = cfg.get('train_cfg') or {}
            lengths |= {f'train_cfg.{key}': settings.get(key, 1) for key in LENGTHS}
        for key, value in lengths.items():
            check(key, value, isinstance(value, int) and value >= 1, 'a whole number >= 1')
    if 'train' in stages:
        _check_best(cfg)


def _check_names(cfg: Config) -> None:
    known = inspect.signature(Runner).parameters
    for key in cfg:
        found = difflib.get_close_matches(key, known, n=1, cutoff=SIMILAR)
        if found and key not in known and f'{found[0]}_' not in key and f'_{found[0]}' not in key:
            raise ConfigError(
                f'the config has {key}, which nothing reads; if it is {found[0]}, write so, else give '
                'it another name'
            )


def _check_best(cfg: Config) -> None:
    """Check that the metric of the best checkpoint is one of COCO's, if only these are evaluated."""
    hooks = [*(cfg.get('default_hooks') or {}).values(), *(cfg.get('custom_hooks') or [])]
    wanted = [x['save_best'] for x in hooks if isinstance(x, dict) and x.get('save_best')]
    evaluators = [x for _, x in evaluator_configs(cfg, 'val_evaluator')]
    if not all(x.get('type') in ('CocoMetric', 'mmdet.CocoMetric') for x in evaluators):
        return
    known = [name for x in evaluators for name in _metrics(x)]
    for name in (name for x in wanted for name in ([x] if isinstance(x, str) else x)):
        is_known = name in ('auto', *known) or not known or name.startswith('teacher/')
        accepted = ', '.join(['auto', *known])
        check('save_best of default_hooks.checkpoint', name, is_known, accepted)


def _metrics(evaluator: dict) -> Iterator[str]:
    """Yield the names of COCO's metrics of boxes and masks."""
    metrics = evaluator.get('metric', 'bbox')
    for metric in [metrics] if isinstance(metrics, str) else metrics:
        for item in evaluator.get('metric_items') or BOX_METRICS:
            yield f'{evaluator.get("prefix") or "coco"}/{metric}_{item}'
