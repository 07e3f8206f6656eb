"""What the seeds of each arm say together: means with intervals, paired differences, costs."""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from .arms import BASELINE
from .results import Results, RunResult

CONFIDENCE = 0.95
SPLITS = {
    'val': 'Validation data, last checkpoint',
    'test': 'Test data, last checkpoint',
}
TIME, MEDIAN_TIME = 'training time', 'median step × iterations'
COSTS = {
    TIME: 'train_seconds',
    MEDIAN_TIME: 'median_seconds',
    'peak memory': 'peak_memory',
}
"""Names in tables of the costs of a run."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and the t-interval around it.

    Attributes:
        mean: The mean; NaN without values.
        count: Number of seeds.
        low: Lower end of the 95% interval; None with one seed, or if all values are the same, which
            tells more about their rounding than about their spread.
        high: Upper end.
    """

    mean: float
    count: int
    low: float | None = None
    high: float | None = None


def estimate(values: Sequence[float]) -> Estimate:
    """Estimate a mean, with Student's t-interval for independent normal values."""
    values = np.asarray(values, dtype=float)
    count = len(values)
    if count == 0:
        return Estimate(float('nan'), 0)
    mean = float(values.mean())
    if count == 1 or np.ptp(values) < 1e-9:
        return Estimate(mean, count)
    low, high = stats.t.interval(CONFIDENCE, count - 1, loc=mean, scale=stats.sem(values))
    return Estimate(mean, count, float(low), float(high))


def verdict(difference: Estimate, reference: str) -> str:
    """Interpret a difference to a reference in words."""
    if difference.count == 0:
        return f'no seed in common with {reference}'
    if difference.count == 1:
        return 'one seed: no interval, so no evidence either way'
    if difference.low is None:
        return 'the same difference with every seed: no interval'
    if difference.low > 0:
        return f'higher than {reference}'
    if difference.high < 0:
        return f'lower than {reference}'
    return 'no evidence of a difference'


Estimates = dict[str, dict[str, Estimate]]
"""Estimates by arm and name."""


def evaluated(results: Results, split: str) -> dict[str, dict[int, RunResult]]:
    """Leave out runs without an AP on a split, and arms without such runs."""
    found = {
        arm: {seed: run for seed, run in runs.items() if run.ap(split)}
        for arm, runs in results.items()
    }
    return {arm: runs for arm, runs in found.items() if runs}


def levels(results: Results, split: str) -> Estimates:
    """Estimate AP, AP50 … of each arm on a split, in percent."""
    return {
        arm: _estimates([run.ap(split) for run in runs.values()])
        for arm, runs in evaluated(results, split).items()
    }


def differences(results: Results, split: str, reference: str = BASELINE) -> Estimates:
    """Estimate AP, AP50 … of each arm minus a reference arm's, paired by seed.

    The baseline and the reference are left out; an arm without a common seed has no estimates.
    """
    found = evaluated(results, split)
    return {
        arm: _paired(runs, found.get(reference, {}), lambda run: run.ap(split), operator.sub)
        for arm, runs in found.items()
        if arm not in (BASELINE, reference)
    }


def cost_ratios(results: Results, split: str) -> Estimates:
    """Estimate the costs of each arm by :data:`COSTS`, relative to the baseline's with the same seed.

    Runs without an evaluation on the split are left out.
    """
    found = evaluated(results, split)

    def costs(run: RunResult) -> dict[str, float]:
        values = {name: getattr(run, key) for name, key in COSTS.items()}
        return {name: value for name, value in values.items() if value}  # 0 or None: unknown

    return {
        arm: _paired(runs, found.get(BASELINE, {}), costs, operator.truediv)
        for arm, runs in found.items()
    }


def _paired(
    runs: Mapping[int, RunResult],
    theirs: Mapping[int, RunResult],
    read: Callable[[RunResult], dict[str, float]],
    compare: Callable[[float, float], float],
) -> dict[str, Estimate]:
    """Compare what is read off two arms' runs with the same seed, as far as both have it."""
    rows = []
    for seed in sorted(runs.keys() & theirs.keys()):
        own, other = read(runs[seed]), read(theirs[seed])
        rows.append({name: compare(own[name], other[name]) for name in own if name in other})
    return _estimates(rows)


def _estimates(rows: Sequence[Mapping[str, float]]) -> dict[str, Estimate]:
    """Estimate the mean of each named value over the rows that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: estimate([row[name] for row in rows if name in row]) for name in names}
