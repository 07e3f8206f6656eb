"""The costs of an arm's training steps, compared with another arm's."""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

NOISE_BOUND = 0.1  # largest interquartile range of paired time ratios, relative to their median


@dataclass
class Costs:
    """The costs of an arm's training steps.

    Attributes:
        name: Name of the arm.
        flops_forward: Floating-point operations of the forward pass, by part.
        flops_backward: Those of the backward pass.
        peak_memory: Bytes; :data:`~.memory.KINDS` says what they measure.
        seconds: Time of each step.
    """

    name: str
    flops_forward: dict[str, int]
    flops_backward: dict[str, int]
    peak_memory: int
    seconds: list[float] = field(default_factory=list)

    @property
    def flops(self) -> int:
        """All operations of a step."""
        return sum(self.flops_forward.values()) + sum(self.flops_backward.values())

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """Lower quartile, median and upper quartile of the seconds."""
        return quartiles(self.seconds)

    def to_dict(self, stock: 'Costs') -> dict[str, Any]:
        """Convert to JSON, with ratios to the costs of the first arm."""
        return {
            **asdict(self),
            'flops': self.flops,
            'step_time': _named(self.quartiles),
            'ratios': Ratios.of(self, stock).to_dict(),
        }


@dataclass(frozen=True)
class Ratios:
    """The costs of an arm over those of another, measured in alternation.

    Attributes:
        time: Quartiles of the step times' ratios, pair by pair.
        flops: Ratio of all operations.
        memory: Ratio of the peaks.
    """

    time: tuple[float, float, float]
    flops: float
    memory: float

    @classmethod
    def of(cls, costs: Costs, stock: Costs) -> 'Ratios':
        """Compare two arms."""
        pairs = zip(costs.seconds, stock.seconds, strict=True)
        return cls(
            quartiles([own / other for own, other in pairs]),
            _ratio(costs.flops, stock.flops),
            _ratio(costs.peak_memory, stock.peak_memory),
        )

    @property
    def time_over_flops(self) -> float:
        """How much longer the steps take than their arithmetic suggests; lower is better."""
        return _ratio(self.time[1], self.flops)

    @property
    def is_noisy(self) -> bool:
        """Whether the times scatter too much for a conclusion."""
        low, median, high = self.time
        return high - low > NOISE_BOUND * median

    def to_dict(self) -> dict[str, Any]:
        """Convert to JSON."""
        return {
            'time': self.time[1],
            'time_quartiles': _named(self.time),
            'flops': self.flops,
            'time_over_flops': self.time_over_flops,
            'memory': self.memory,
            'too_noisy': self.is_noisy,
        }


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Compute lower quartile, median and upper quartile of one or more values."""
    return tuple(np.quantile(values, (0.25, 0.5, 0.75)).tolist())


def _named(values: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip(('lower_quartile', 'median', 'upper_quartile'), values, strict=True))


def _ratio(value: float, reference: float) -> float:
    return value / reference if reference else float('nan')
