"""Reads the length of a config's schedule, and stretches it."""

import copy
import re
from fractions import Fraction
from typing import Any

from mmengine.config import Config

from ...errors import check

KINDS = (
    'Constant',
    'CosineAnnealing',
    'Linear',
    'MultiStep',
    'OneCycle',
    'Poly',
    'QuadraticWarmup',
)
"""Schedulers that can be stretched, without ``LR``, ``Momentum`` or ``ParamScheduler``."""


def length(cfg: Config) -> tuple[str, int]:
    """Read a run's length: its unit, ``'epoch'`` or ``'iteration'``, and their number."""
    if 'max_iters' in cfg.train_cfg:
        return 'iteration', cfg.train_cfg.max_iters
    return 'epoch', cfg.train_cfg.max_epochs


def stretched(cfg: Config, factor: float) -> Config:
    """Make a config train longer; learning rates change at the same fractions of the run.

    Args:
        cfg: The config; not changed.
        factor: Factor > 0 of the length. The length is rounded to whole epochs or iterations, at
            least one, and the schedule is stretched by the resulting ratio.

    Raises:
        ConfigError: if a parameter scheduler is not one of :data:`KINDS`.
    """
    cfg = copy.deepcopy(cfg)
    unit, count = length(cfg)
    longer = _scaled(count, factor)
    ratio = Fraction(longer, count)
    cfg.train_cfg['max_iters' if unit == 'iteration' else 'max_epochs'] = longer
    if starts := cfg.train_cfg.get('dynamic_intervals'):
        cfg.train_cfg.dynamic_intervals = [(_scaled(x, ratio), every) for x, every in starts]
    schedulers = cfg.get('param_scheduler') or []
    for scheduler in [schedulers] if isinstance(schedulers, dict) else schedulers:
        _stretch(scheduler, ratio)
    for hook in cfg.get('custom_hooks') or []:
        for key in ('switch_epoch', 'num_last_epochs'):
            if hook.get(key):
                hook[key] = _scaled(hook[key], ratio)
    return cfg


def _stretch(scheduler: dict[str, Any], ratio: Fraction) -> None:
    """Stretch a scheduler in place."""
    name = str(scheduler.get('type')).rpartition('.')[2]
    kind = re.sub(r'(LR|Momentum|ParamScheduler)$', '', name)
    accepted = f'to stretch a schedule, schedulers named {", ".join(KINDS)}'
    check('param_scheduler.type', scheduler.get('type'), kind in KINDS and kind != name, accepted)
    begin = scheduler.get('begin', 0)

    def moved(offset: float) -> float:
        """Stretch an offset from ``begin``."""
        return _scaled(begin + offset, ratio) - _scaled(begin, ratio)

    if 'milestones' in scheduler:
        scheduler['milestones'] = [moved(x) for x in scheduler['milestones']]
    for key in ('T_max', 'total_steps'):
        if scheduler.get(key):
            scheduler[key] = max(1, moved(scheduler[key]))
    for key in ('begin', 'end'):
        if scheduler.get(key):
            scheduler[key] = _scaled(scheduler[key], ratio)


def _scaled(value: float, factor: float) -> float:
    """Scale a number of epochs or iterations; whole numbers stay whole, and positive if they were."""
    if value % 1:
        return float(value * factor)
    return max(1, round(value * factor)) if value else 0
