"""What the steps of an arm cost, and how that compares with another's."""

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

NOISE_BOUND = 0.1  # of the interquartile range of paired time ratios, as a share of their median


@dataclass
class Costs:
    """What the training steps of an arm cost.

    Attributes:
        name: The arm's.
        flops_forward: Floating-point operations of the forward pass by part.
        flops_backward: Those of the backward pass.
        peak_memory: In bytes; :data:`~.memory.KINDS` says of what.
        seconds: Of each step.
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
        """Write it for JSON, with the ratios to the costs of the first arm."""
        return {
            **asdict(self),
            'flops': self.flops,
            'step_time': _named(self.quartiles),
            'ratios': Ratios.of(self, stock).to_dict(),
        }


@dataclass(frozen=True)
class Ratios:
    """The costs of an arm over those of another whose steps were taken in turn with its own.

    Attributes:
        time: Quartiles of the ratios of the steps' times, pair by pair.
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
        """How much longer the steps take than their arithmetic says; 1 is ideal, less is better."""
        return _ratio(self.time[1], self.flops)

    @property
    def is_noisy(self) -> bool:
        """Whether the times scatter too much to tell."""
        low, median, high = self.time
        return high - low > NOISE_BOUND * median

    def to_dict(self) -> dict[str, Any]:
        """Write it for JSON."""
        return {
            'time': self.time[1],
            'time_quartiles': _named(self.time),
            'flops': self.flops,
            'time_over_flops': self.time_over_flops,
            'memory': self.memory,
            'too_noisy': self.is_noisy,
        }


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Give lower quartile, median and upper quartile of one value or more."""
    if len(values) == 1:
        return (values[0],) * 3
    return tuple(statistics.quantiles(values, n=4, method='inclusive'))


def _named(found: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip(('lower_quartile', 'median', 'upper_quartile'), found, strict=True))


def _ratio(own: float, other: float) -> float:
    return own / other if other else float('nan')
