"""The costs of arms' training steps, compared with the first arm's."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from rich.table import Table

from .counts import COUNTED, PARTS

NOISE_BOUND = 0.1  # largest interquartile range of paired time ratios, relative to their median


@dataclass
class Costs:
    """The costs of an arm's training steps.

    Attributes:
        name: Name of the arm.
        parts: For each part of a step, its floating-point operations (``flops``), the operators that
            the device runs (``operators``), and those that wait for it (``waits``).
        peak_memory: Bytes; :data:`~.memory.KINDS` says what they measure.
        seconds: Time of each step.
    """

    name: str
    parts: dict[str, dict[str, int]]
    peak_memory: int
    seconds: list[float] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """Sums over the parts."""
        return {kind: sum(x[kind] for x in self.parts.values()) for kind in COUNTED}

    def to_dict(self, first: 'Costs') -> dict[str, Any]:
        """Convert to JSON, with ratios to the costs of the first arm, step by step for the time."""
        pairs = zip(self.seconds, first.seconds, strict=True)
        time = quartiles([own / other for own, other in pairs])
        counted = {kind: n / max(first.counts[kind], 1) for kind, n in self.counts.items()}
        ratios = {
            'time': time['median'],
            'time_quartiles': time,
            **counted,
            'time_over_flops': time['median'] / counted['flops'],
            'memory': self.peak_memory / first.peak_memory,
            'too_noisy': time['upper_quartile'] - time['lower_quartile']
            > NOISE_BOUND * time['median'],
        }
        return {
            **asdict(self),
            **self.counts,
            'step_time': quartiles(self.seconds),
            'ratios': ratios,
        }


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Compute lower quartile, median and upper quartile of one or more values."""
    names = ('lower_quartile', 'median', 'upper_quartile')
    return dict(zip(names, np.quantile(values, (0.25, 0.5, 0.75)).tolist(), strict=True))


def cost_table(arms: Sequence[dict[str, Any]], memory_kind: str) -> Table:
    """List the costs of steps, as from :meth:`Costs.to_dict`, a column for each arm."""
    table = Table(
        title=f'training steps; × is relative to {arms[0]["name"]}',
        caption=f'waits: operators for which the program waits; memory: {memory_kind}',
    )
    table.add_column()
    for arm in arms:
        table.add_column(arm['name'], justify='right')
    columns = [_cells(arm) for arm in arms]
    for name in columns[0]:
        table.add_row(name, *(cells[name] for cells in columns), end_section=name == 'memory ×')
    table.add_row('operators (waits) of')
    for part in PARTS:
        counts = [arm['parts'].get(part) for arm in arms]
        if any(counts):
            cells = (f'{x["operators"]:,} ({x["waits"]:,})' if x else '' for x in counts)
            table.add_row(f'  {part}', *cells)
    return table


def _cells(arm: dict[str, Any]) -> dict[str, str]:
    """Write an arm's costs, by the names of the table's rows."""
    low, median, high = arm['step_time'].values()
    ratios = arm['ratios']
    return {
        'time': f'{median:.4g} s',
        'quartiles': f'{low:.4g} – {high:.4g}',
        'time ×': f'{ratios["time"]:.2f}' + ' ?' * ratios['too_noisy'],
        'FLOPs': f'{arm["flops"] / 1e9:,.1f} G',
        'FLOPs ×': f'{ratios["flops"]:.2f}',
        'time × / FLOPs ×': f'{ratios["time_over_flops"]:.2f}',
        'operators': f'{arm["operators"]:,}',
        'operators ×': f'{ratios["operators"]:.2f}',
        'waits': f'{arm["waits"]:,}',
        'waits ×': f'{ratios["waits"]:.2f}',
        'memory': f'{arm["peak_memory"] / 2**20:,.0f} MiB',
        'memory ×': f'{ratios["memory"]:.2f}',
    }


def noise_note(arms: Sequence[dict[str, Any]]) -> str:
    """Name the arms whose times scatter too much for a conclusion; empty without any."""
    noisy = ', '.join(arm['name'] for arm in arms if arm['ratios']['too_noisy'])
    return noisy and (
        f'Step times of {noisy} are too noisy: the interquartile range of the ratios of paired steps '
        f'is over {NOISE_BOUND:.0%} of their median. Use more --steps or an idle machine.'
    )
