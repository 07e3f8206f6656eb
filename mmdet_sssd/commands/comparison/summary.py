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
MEDIAN_TIME = 'median step × iterations'
COSTS = {
    'training time': 'train_seconds',
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


@dataclass
class ArmSummary:
    """What the seeds of an arm say together, on one split, next to a reference arm.

    Attributes:
        seeds: The seeds.
        ap: AP, AP50 … in percent.
        differences: The same minus the reference's, paired by seed; empty without a common seed.
        class_differences: The AP of each class minus the reference's, paired by seed.
        ratios: The costs relative to the reference's with the same seed, by :data:`COSTS`.
    """

    seeds: list[int]
    ap: dict[str, Estimate]
    differences: dict[str, Estimate]
    class_differences: dict[str, Estimate]
    ratios: dict[str, Estimate]


Summaries = Mapping[str, ArmSummary]
"""Summaries by arm, relative to one of them."""


def summarize(results: Results, split: str, reference: str = BASELINE) -> dict[str, ArmSummary]:
    """Summarise each arm that has results of a split, next to a reference arm."""
    evaluated = {
        arm: {seed: run for seed, run in runs.items() if run.ap(split)}
        for arm, runs in results.items()
    }
    theirs = evaluated.get(reference, {})
    return {arm: _summary(runs, theirs, split) for arm, runs in evaluated.items() if runs}


def _summary(
    runs: Mapping[int, RunResult], theirs: Mapping[int, RunResult], split: str
) -> ArmSummary:
    pairs = [(runs[seed], theirs[seed]) for seed in sorted(runs.keys() & theirs.keys())]

    def paired(
        read: Callable[[RunResult], dict[str, float | None]],
        compare: Callable[[float, float], float] = operator.sub,
    ) -> dict[str, Estimate]:
        return _estimates([_compared(read(own), read(other), compare) for own, other in pairs])

    return ArmSummary(
        seeds=list(runs),
        ap=_estimates([run.ap(split) for run in runs.values()]),
        differences=paired(lambda run: run.ap(split)),
        class_differences=paired(lambda run: run.class_ap(split)),
        ratios=paired(
            lambda run: {name: getattr(run, key) for name, key in COSTS.items()}, operator.truediv
        ),
    )


def _compared(
    own: dict[str, float | None],
    other: dict[str, float | None],
    compare: Callable[[float, float], float],
) -> dict[str, float]:
    """Compare values by name, without what either lacks."""
    known = [x for x in own if own[x] is not None and other.get(x) is not None]
    return {name: compare(own[name], other[name]) for name in known}


def _estimates(rows: Sequence[Mapping[str, float]]) -> dict[str, Estimate]:
    """Estimate the mean of each named value over the rows that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: estimate([row[name] for row in rows if name in row]) for name in names}


def rivals(arms: Summaries, reference: str = BASELINE) -> Summaries:
    """Leave out the baseline and the reference."""
    return {arm: x for arm, x in arms.items() if arm not in (BASELINE, reference)}


def has_differences(arms: Summaries, reference: str = BASELINE) -> bool:
    """Tell whether an arm other than the baseline shares a seed with the reference."""
    return any(x.differences for x in rivals(arms, reference).values())
