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
    'val': 'validation data, last checkpoint',
    'test': 'test data, last checkpoint',
}


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

    @property
    def half_width(self) -> float | None:
        """Half the length of the interval; None without one."""
        return None if self.low is None else (self.high - self.low) / 2


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


def paired(
    values: Mapping[int, float],
    reference: Mapping[int, float],
    compare: Callable[[float, float], float] = operator.sub,
) -> Estimate:
    """Estimate the difference of two arms over their common seeds, or what ``compare`` computes."""
    seeds = sorted(values.keys() & reference.keys())
    return estimate([compare(values[seed], reference[seed]) for seed in seeds])


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
        differences: The same minus the reference's, paired by seed.
        class_differences: The AP of each class minus the reference's, paired by seed.
        time_ratio: Training time relative to the reference's.
        median_time_ratio: The same by the median iteration of each.
        memory_ratio: Peak memory relative to the reference's.
    """

    seeds: list[int]
    ap: dict[str, Estimate]
    differences: dict[str, Estimate]
    class_differences: dict[str, Estimate]
    time_ratio: Estimate
    median_time_ratio: Estimate
    memory_ratio: Estimate


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
    runs: Mapping[int, RunResult], reference: Mapping[int, RunResult], split: str
) -> ArmSummary:
    def differences(read: Callable[[RunResult], dict[str, float]]) -> dict[str, Estimate]:
        ours, theirs = _by_name(runs, read), _by_name(reference, read)
        return {name: paired(ours[name], theirs[name]) for name in ours if name in theirs}

    def ratio(cost: str) -> Estimate:
        ours, theirs = (
            _by_name(x, lambda run: {cost: getattr(run, cost)}) for x in (runs, reference)
        )
        return paired(ours.get(cost, {}), theirs.get(cost, {}), operator.truediv)

    aps = _by_name(runs, lambda run: run.ap(split))
    return ArmSummary(
        seeds=list(runs),
        ap={name: estimate(list(values.values())) for name, values in aps.items()},
        differences=differences(lambda run: run.ap(split)),
        class_differences=differences(lambda run: run.class_ap(split)),
        time_ratio=ratio('train_seconds'),
        median_time_ratio=ratio('median_seconds'),
        memory_ratio=ratio('peak_memory'),
    )


def _by_name(
    runs: Mapping[int, RunResult], read: Callable[[RunResult], Mapping[str, float | None]]
) -> dict[str, dict[int, float]]:
    """Turn what is read off each run into values by name and seed, without what is unknown."""
    values: dict[str, dict[int, float]] = {}
    for seed, run in runs.items():
        for name, value in read(run).items():
            if value is not None:
                values.setdefault(name, {})[seed] = value
    return values


def rivals(arms: Summaries, reference: str = BASELINE) -> Summaries:
    """Leave out the baseline and the reference."""
    return {arm: x for arm, x in arms.items() if arm not in (BASELINE, reference)}


def has_differences(arms: Summaries, reference: str = BASELINE) -> bool:
    """Tell whether an arm other than the baseline shares a seed with the reference."""
    return any(x.differences for x in rivals(arms, reference).values())


def summarize_all(results: Results, against: Sequence[str] = ()) -> dict[str, dict[str, Summaries]]:
    """Summarise by split and reference: the baseline first, then the arms of ``against``."""
    return {
        split: {name: summarize(results, split, name) for name in (BASELINE, *against)}
        for split in SPLITS
        if any(run.ap(split) for runs in results.values() for run in runs.values())
    }
