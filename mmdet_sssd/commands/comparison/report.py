"""Reports of comparisons in Markdown, and the bare numbers."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runs import AtomicLocalBackend
from .arms import BASELINE
from .metrics import AP_NAMES, MASK_AP_NAMES
from .results import Results
from .summary import (
    SPLITS,
    Estimate,
    Summaries,
    estimate,
    has_differences,
    rivals,
    verdict,
)

LITTLE = 5  # AP, in percent, of a baseline that has hardly begun to learn
MEDIAN_TIME = 'median step × iterations'


@dataclass(frozen=True)
class Table:
    """A table, with a line above it that may be empty."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ''


@dataclass(frozen=True)
class Report:
    """A title, sections of tables by their headings, and notes, a sentence or two each."""

    title: str
    sections: Mapping[str, Sequence[Table]]
    notes: Sequence[str]

    def write(self, path: Path) -> str:
        """Write the report as Markdown; returns it."""
        parts = [f'# {self.title}']
        for heading, tables in self.sections.items():
            parts.append(f'## {heading}')
            for table in tables:
                rule = '| --- ' * len(table.header) + '|'
                rows = [f'| {" | ".join(row)} |' for row in (table.header, *table.rows)]
                parts += [*filter(None, [table.title]), '\n'.join([rows[0], rule, *rows[1:]])]
        notes = '\n'.join(f'- {note}' for note in self.notes)
        text = '\n\n'.join([*parts, notes]) + '\n'
        AtomicLocalBackend().put_text(text, str(path))
        return text


def comparison_report(results: Results, summaries: Mapping[str, Mapping[str, Summaries]]) -> Report:
    """Report on results and what :func:`~.summary.summarize_all` made of them."""
    sections = {}
    for split, by_reference in summaries.items():
        tables = [_ap_table(by_reference[BASELINE])]
        for reference, arms in by_reference.items():
            if has_differences(arms, reference):
                tables.append(_difference_table(arms, reference))
        sections[SPLITS[split].capitalize()] = tables
    return Report('Comparison', sections, _notes(results, summaries))


def _ap_names(aps: Iterable[Mapping[str, Any]]) -> list[str]:
    """Choose the columns: those of boxes, and of masks if there are any."""
    found = {name for ap in aps for name in ap}
    return [*AP_NAMES, *(name for name in MASK_AP_NAMES if name in found)]


def _ap_table(arms: Summaries) -> Table:
    names = _ap_names(x.ap for x in arms.values())
    costs = {
        'training time': [x.time_ratio for x in arms.values()],
        MEDIAN_TIME: [x.median_time_ratio for x in arms.values()],
        'peak memory': [x.memory_ratio for x in arms.values()],
    }
    if not any(x.count for x in costs[MEDIAN_TIME]):
        del costs[MEDIAN_TIME]
    rows = [
        [
            arm,
            str(len(x.seeds)),
            *(_level(x.ap.get(name)) for name in names),
            *map(times_text, ratios),
        ]
        for (arm, x), *ratios in zip(arms.items(), *costs.values(), strict=True)
    ]
    return Table(['arm', 'seeds', *names, *costs], rows)


def _difference_table(arms: Summaries, reference: str) -> Table:
    name = 'the baseline' if reference == BASELINE else reference
    names = _ap_names(x.differences for x in arms.values())
    rows = [
        [
            arm,
            verdict(x.differences.get('AP', estimate([])), name),
            *(difference_text(x.differences.get(ap)) for ap in names),
        ]
        for arm, x in rivals(arms, reference).items()
    ]
    header = ['arm', 'AP is', *(f'Δ {ap}' for ap in names)]
    return Table(header, rows, f'Difference to {name}, paired by seed:')


def _notes(results: Results, summaries: Mapping[str, Mapping[str, Summaries]]) -> list[str]:
    intervals = [
        x.differences['AP']
        for by_reference in summaries.values()
        for reference, arms in by_reference.items()
        for x in rivals(arms, reference).values()
        if x.differences and x.differences['AP'].low is not None
    ]
    devices = sorted({run.device for runs in results.values() for run in runs.values()})
    on_cpu, on_gpu = 'of the whole process, Python included', 'that torch allocated on the GPU'
    notes = [
        'AP in percent: the mean ± half the 95% t-interval over seeds. Δ: the mean difference with its '
        '95% t-interval; n counts the seeds that both arms have. Where an interval contains 0, the '
        'seeds neither show a difference nor rule one out.',
        'All numbers are of the last checkpoint: the best one, chosen on the data that is reported, '
        'would flatter each arm.',
        'Training time sums up the iterations, without validation. Other work on the machine adds to '
        f'it, and less to {MEDIAN_TIME}, where that was noted. Memory is the peak '
        f'{on_cpu if devices == ["CPU"] else on_gpu}. Both are relative to the baseline with the same '
        f'seed ({", ".join(devices)}).',
    ]
    if (count := len(intervals)) > 1:
        notes.append(
            f'{count} differences of AP have an interval, each by itself: without any effect, '
            f'about {0.05 * count:.2g} of {count} would exclude 0 by chance.'
        )
    if BASELINE not in results:
        notes.append('The baseline has no result yet, so there are no differences to it.')
    levels = [
        x[BASELINE][BASELINE].ap['AP'].mean for x in summaries.values() if BASELINE in x[BASELINE]
    ]
    if levels and min(levels) < LITTLE:
        notes.insert(
            0,
            f'The baseline reaches an AP of {min(levels):.1f}: it has hardly begun to learn, so the '
            'differences tell nothing of a trained detector. Train longer.',
        )
    return notes


def _level(x: Estimate | None) -> str:
    if x is None or math.isnan(x.mean):
        return '–'
    return f'{x.mean:.1f}' + (f' ± {x.half_width:.1f}' if x.half_width is not None else '')


def difference_text(x: Estimate | None) -> str:
    """Write a difference with its interval and its number of values."""
    if x is None or not x.count:
        return '–'
    interval = f' [{x.low:+.1f}, {x.high:+.1f}]' if x.low is not None else ''
    return f'{x.mean:+.1f}{interval} (n={x.count})'


def times_text(x: Estimate) -> str:
    """Write a ratio."""
    return f'×{x.mean:.2f}' if x.count else '–'


def write_csv(path: Path, results: Results) -> None:
    """Write a row for each run and split."""
    runs = [run for by_seed in results.values() for run in by_seed.values()]
    aps = _ap_names(run.ap(split) for run in runs for split in run.metrics)
    costs = ['iterations', 'train_seconds', 'step_seconds', 'peak_memory']
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['arm', 'seed', 'split', *aps, *costs[:-1], 'peak_memory_mib', 'device'])
    for run in runs:
        for split in run.metrics:
            ap = {name: round(x, 3) for name, x in run.ap(split).items()}
            row = [run.arm, run.seed, split, *(ap.get(name, '') for name in aps)]
            writer.writerow([*row, *(getattr(run, cost) for cost in costs), run.device])
    AtomicLocalBackend().put_text(text.getvalue(), str(path))
