"""Reports of comparisons: Markdown, and the bare numbers as CSV."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .arms import BASELINE
from .metrics import AP_NAMES, MASK_AP_NAMES
from .results import Results
from .summary import (
    COSTS,
    MEDIAN_TIME,
    SPLITS,
    Estimate,
    Estimates,
    cost_ratios,
    differences,
    estimate,
    evaluated,
    levels,
    verdict,
)

LITTLE = 5  # AP, in percent, of a baseline that has hardly begun to learn
NONE = '–'


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f'| {" | ".join(row)} |' for row in (header, *rows)]
    return '\n'.join([lines[0], '| --- ' * len(header) + '|', *lines[1:]])


def comparison_report(results: Results, against: Sequence[str] = ()) -> str:
    """Report on results in Markdown, with differences to the baseline and the arms of ``against``."""
    parts, baselines, intervals = ['# Comparison'], [], []
    for split, title in SPLITS.items():
        aps = levels(results, split)
        if not aps:
            continue
        parts += [f'## {title}', _ap_table(aps, results, split)]
        baselines += [aps[BASELINE]['AP'].mean] if BASELINE in aps else []
        for reference in dict.fromkeys((BASELINE, *against)):
            arms = differences(results, split, reference)
            if any(arms.values()):
                parts += _difference_table(arms, reference)
            intervals += [x['AP'] for x in arms.values() if x and x['AP'].low is not None]
    notes = [f'- {note}' for note in _notes(results, baselines, len(intervals))]
    return '\n\n'.join([*parts, '\n'.join(notes)]) + '\n'


def _ap_names(aps: Iterable[Mapping[str, Any]]) -> list[str]:
    """Choose the columns: those of boxes, and of masks if there are any."""
    found = {name for ap in aps for name in ap}
    return [*AP_NAMES, *(name for name in MASK_AP_NAMES if name in found)]


def _ap_table(aps: Estimates, results: Results, split: str) -> str:
    runs, ratios = evaluated(results, split), cost_ratios(results, split)
    names = _ap_names(aps.values())
    costs = [x for x in COSTS if x != MEDIAN_TIME or any(x in found for found in ratios.values())]
    rows = [
        [
            arm,
            str(len(runs[arm])),
            *(_level_text(found.get(name)) for name in names),
            *(_times_text(ratios[arm].get(cost)) for cost in costs),
        ]
        for arm, found in aps.items()
    ]
    return _table(['arm', 'seeds', *names, *costs], rows)


def _difference_table(arms: Estimates, reference: str) -> list[str]:
    name = 'the baseline' if reference == BASELINE else reference
    names = _ap_names(arms.values())
    rows = [
        [
            arm,
            verdict(found.get('AP', estimate([])), name),
            *(_difference_text(found.get(ap)) for ap in names),
        ]
        for arm, found in arms.items()
    ]
    table = _table(['arm', 'AP is', *(f'Δ {ap}' for ap in names)], rows)
    return [f'Difference to {name}, paired by seed:', table]


def _notes(results: Results, baselines: Sequence[float], num_intervals: int) -> list[str]:
    """Say how to read a report.

    Args:
        results: The results.
        baselines: AP of the baseline on each split, in percent.
        num_intervals: Number of differences of AP that have an interval.
    """
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
    if num_intervals > 1:
        notes.append(
            f'{num_intervals} differences of AP have an interval, each by itself: without any effect, '
            f'about {0.05 * num_intervals:.2g} of {num_intervals} would exclude 0 by chance.'
        )
    for arm, runs in results.items():
        if stopped := [str(seed) for seed, run in runs.items() if run.teacher_leads is False]:
            notes.append(
                f'{arm} (seeds {", ".join(stopped)}): the teacher was behind the student early in the '
                'run and stopped there (teacher_must_lead); the rest was stock training.'
            )
    if BASELINE not in results:
        notes.append('The baseline has no result yet, so there are no differences to it.')
    if baselines and min(baselines) < LITTLE:
        notes.insert(
            0,
            f'The baseline reaches an AP of {min(baselines):.1f}: it has hardly begun to learn, so the '
            'differences tell nothing of a trained detector. Train longer.',
        )
    return notes


def _level_text(x: Estimate | None) -> str:
    if x is None:
        return NONE
    return f'{x.mean:.1f}' + (f' ± {(x.high - x.low) / 2:.1f}' if x.low is not None else '')


def _difference_text(x: Estimate | None) -> str:
    if x is None or not x.count:
        return NONE
    interval = f' [{x.low:+.1f}, {x.high:+.1f}]' if x.low is not None else ''
    return f'{x.mean:+.1f}{interval} (n={x.count})'


def _times_text(x: Estimate | None) -> str:
    return NONE if x is None else f'×{x.mean:.2f}'


def csv_report(results: Results) -> str:
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
    return text.getvalue()
