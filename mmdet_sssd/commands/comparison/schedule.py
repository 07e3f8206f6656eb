"""How long a config trains, and the same schedule in slow motion."""

import copy
from typing import Any

from mmengine.config import Config

SCHEDULER_KEYS = (
    'begin',
    'end',
    'milestones',
    'step_size',
    'T_max',
    'T_0',
    'total_steps',
    'decay_steps',
)


def length(cfg: Config) -> tuple[str, int]:
    """Give the unit that a run is counted in, ``'epoch'`` or ``'iteration'``, and how many it has."""
    if 'max_iters' in cfg.train_cfg:
        return 'iteration', cfg.train_cfg.max_iters
    return 'epoch', cfg.train_cfg.max_epochs


def stretched(cfg: Config, factor: float) -> Config:
    """Make a config train longer, with learning rates that change at the same fractions of the run.

    Args:
        cfg: The config; it is left as it is.
        factor: How many times as long, > 0; the run has a whole number of epochs or iterations, one
            or more.
    """
    cfg = copy.deepcopy(cfg)
    unit, count = length(cfg)
    cfg.train_cfg['max_iters' if unit == 'iteration' else 'max_epochs'] = _scaled(count, factor)
    if starts := cfg.train_cfg.get('dynamic_intervals'):
        cfg.train_cfg.dynamic_intervals = [(_scaled(x, factor), every) for x, every in starts]
    schedulers = cfg.get('param_scheduler') or []
    for scheduler in [schedulers] if isinstance(schedulers, dict) else schedulers:
        for key in SCHEDULER_KEYS:
            if scheduler.get(key):
                scheduler[key] = _scaled(scheduler[key], factor)
    for hook in cfg.get('custom_hooks') or []:
        if hook.get('switch_epoch'):
            hook['switch_epoch'] = _scaled(hook['switch_epoch'], factor)
    return cfg


def _scaled(value: Any, factor: float) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_scaled(x, factor) for x in value)
    return max(1, round(value * factor))
