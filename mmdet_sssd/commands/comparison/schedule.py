"""How long a config trains, and the same schedule in slow motion."""

import copy
import math
import re
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import Any

from mmengine.config import Config

from ...errors import ConfigError, check

KINDS = (
    'Constant',
    'CosineAnnealing',
    'CosineRestart',
    'Exponential',
    'Linear',
    'MultiStep',
    'OneCycle',
    'Poly',
    'QuadraticWarmup',
    'ReduceOnPlateau',
    'Step',
)
"""The schedulers of mmengine and mmdet; each is there for ``LR``, ``Momentum`` or any parameter."""


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
            or more, and its schedule is stretched as much as that.

    Raises:
        ConfigError: if a parameter scheduler is unknown, or its length is.
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
        by_epoch = scheduler.get('by_epoch', True)
        _stretch(scheduler, ratio, count if by_epoch == (unit == 'epoch') else math.inf)
    for hook in cfg.get('custom_hooks') or []:
        if hook.get('switch_epoch'):
            hook['switch_epoch'] = _scaled(hook['switch_epoch'], ratio)
    return cfg


def _stretch(scheduler: dict[str, Any], ratio: Fraction, run: float) -> None:
    """Stretch a scheduler in place; ``run`` is the run's length in what it counts, if that is known."""
    name = str(scheduler.get('type')).rpartition('.')[2]
    kind = re.sub(r'(LR|Momentum|ParamScheduler)$', '', name)
    accepted = f'where a schedule is stretched (match_time), those named {", ".join(KINDS)}'
    check('param_scheduler.type', scheduler.get('type'), kind in KINDS and kind != name, accepted)
    begin = scheduler.get('begin', 0)

    def moved(offset: float) -> float:
        """Move a point that is counted from ``begin``."""
        return _scaled(begin + offset, ratio) - _scaled(begin, ratio)

    if kind == 'Step' and (scheduler['step_size'] * ratio).denominator > 1:
        _name_steps(scheduler, name, run)
    elif kind == 'Step':
        scheduler['step_size'] = int(scheduler['step_size'] * ratio)
    elif kind == 'Exponential':
        scheduler['gamma'] **= float(1 / ratio)
    elif kind == 'ReduceOnPlateau':  # counts validations, of which there are more
        scheduler['patience'] = round((scheduler.get('patience', 10) + 1) * ratio) - 1
        scheduler['cooldown'] = round(scheduler.get('cooldown', 0) * ratio)
    elif kind == 'CosineRestart':
        ends = [moved(x) for x in accumulate(scheduler['periods'])]
        scheduler['periods'] = [end - start for start, end in pairwise([0, *ends])]
    if 'milestones' in scheduler:
        scheduler['milestones'] = [moved(x) for x in scheduler['milestones']]
    for key in ('T_max', 'total_steps'):
        if scheduler.get(key):
            scheduler[key] = max(1, moved(scheduler[key]))
    for key in ('begin', 'end'):
        if scheduler.get(key):
            scheduler[key] = _scaled(scheduler[key], ratio)


def _name_steps(scheduler: dict[str, Any], name: str, run: float) -> None:
    """Turn even steps, which would drift if each was rounded, into a list of milestones."""
    end = min(scheduler.get('end', math.inf), run)
    if math.isinf(end):
        raise ConfigError(f'of {name} is None; accepted: a number', 'param_scheduler.end')
    size = scheduler.pop('step_size')
    scheduler['type'] = f'Multi{name}'
    scheduler['milestones'] = list(range(size, end - scheduler.get('begin', 0), size))


def _scaled(value: float, factor: float) -> float:
    """Scale a number of epochs or iterations; a whole number stays whole, and above 0."""
    if value % 1:
        return float(value * factor)
    return max(1, round(value * factor)) if value else 0
