"""Statistics over a handful of seeds: means, intervals, paired differences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


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


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Estimate:
    """Estimate the difference of two arms over their common seeds."""
    seeds = sorted(values.keys() & baseline.keys())
    return estimate([values[seed] - baseline[seed] for seed in seeds])


def paired_ratio(values: Mapping[int, float], baseline: Mapping[int, float]) -> Estimate:
    """Estimate the ratio of two arms over their common seeds."""
    seeds = sorted(values.keys() & baseline.keys())
    return estimate([values[seed] / baseline[seed] for seed in seeds])


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
