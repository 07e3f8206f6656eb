"""Writes what came out of a comparison: tables as Markdown, CSV and JSON."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...checkpoints import AtomicLocalBackend
from ...config_tree import rewritten
from .arms import BASELINE
from .metrics import AP_NAMES, MASK_AP_NAMES, class_metrics
from .results import CellResult, Results
from .statistics import Estimate, estimate, paired_difference, paired_ratio, verdict

SPLITS = {
    'val': 'validation data, last checkpoint',
    'test': 'test data, last checkpoint',
}

MEDIAN_TIME = 'median step × iterations'


@dataclass
class ArmSummary:
    """What the seeds of an arm say together, on one split, next to a reference arm.

    Attributes:
        seeds: The seeds.
        ap: AP, AP50 … in percent.
        differences: The same minus the reference's, paired by seed.
        class_differences: The AP of each class minus the reference's, paired by seed.
        verdict: What the difference of AP is worth, in words; empty for the reference itself.
        time_ratio: Training time relative to the reference's.
        median_time_ratio: The same by the median iteration of each.
        memory_ratio: Peak memory relative to the reference's.
    """

    seeds: list[int]
    ap: dict[str, Estimate]
    differences: dict[str, Estimate]
    class_differences: dict[str, Estimate]
    verdict: str
    time_ratio: Estimate
    median_time_ratio: Estimate
    memory_ratio: Estimate


Summaries = Mapping[str, ArmSummary]
"""Summaries by arm, relative to one of them."""


def summarize(results: Results, split: str, reference: str = BASELINE) -> dict[str, ArmSummary]:
    """Summarise each arm that has results of a split, next to a reference arm."""
    have = {
        arm: {seed: cell for seed, cell in cells.items() if cell.ap(split)}
        for arm, cells in results.items()
    }
    return {arm: _summary(have, arm, reference, split) for arm, cells in have.items() if cells}


def _summary(have: Results, arm: str, reference: str, split: str) -> ArmSummary:
    def by_class(cell: CellResult) -> dict[str, float]:
        return class_metrics(cell.metrics[split])

    cells, rivals = have[arm], have.get(reference, {})
    columns = _columns(cells, lambda cell: cell.ap(split))
    differences = _differences(cells, rivals, lambda cell: cell.ap(split))
    worth = verdict(differences.get('AP', estimate([])), _name(reference))
    return ArmSummary(
        seeds=list(cells),
        ap={name: estimate(list(values.values())) for name, values in columns.items()},
        differences=differences,
        class_differences=_differences(cells, rivals, by_class),
        verdict='' if arm == reference else worth,
        time_ratio=_ratio(cells, rivals, 'train_seconds'),
        median_time_ratio=_ratio(cells, rivals, 'median_seconds'),
        memory_ratio=_ratio(cells, rivals, 'peak_memory'),
    )


def _columns(
    cells: Mapping[int, CellResult], read: Callable[[CellResult], dict[str, float]]
) -> dict[str, dict[int, float]]:
    """Turn what is read off each cell into values by seed for each name."""
    rows = {seed: read(cell) for seed, cell in cells.items()}
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    return {name: {s: row[name] for s, row in rows.items() if name in row} for name in names}


def _differences(
    cells: Mapping[int, CellResult],
    reference: Mapping[int, CellResult],
    read: Callable[[CellResult], dict[str, float]],
) -> dict[str, Estimate]:
    ours, theirs = _columns(cells, read), _columns(reference, read)
    return {name: paired_difference(ours[name], theirs[name]) for name in ours if name in theirs}


def _ratio(
    cells: Mapping[int, CellResult], reference: Mapping[int, CellResult], name: str
) -> Estimate:
    ours, theirs = (
        {seed: value for seed, cell in x.items() if (value := getattr(cell, name)) is not None}
        for x in (cells, reference)
    )
    return paired_ratio(ours, theirs)


def write_report(
    folder: Path, results: Results, notes: Sequence[str] = (), against: Sequence[str] = ()
) -> str:
    """Write ``report.md``, ``report.csv`` (a row per cell) and ``report.json`` into a folder.

    Args:
        folder: The folder.
        results: What came out.
        notes: Paragraphs of Markdown to put at the end.
        against: Arms to list the differences to, after those to the baseline.

    Returns:
        The Markdown.
    """
    summaries = {
        split: {name: summarize(results, split, name) for name in (BASELINE, *against)}
        for split in SPLITS
        if any(cell.ap(split) for cells in results.values() for cell in cells.values())
    }
    text = '\n'.join([markdown(results, summaries), *(f'{note}\n' for note in notes)])
    put = AtomicLocalBackend().put_text
    put(text, str(folder / 'report.md'))
    put(as_csv(results), str(folder / 'report.csv'))
    content = {
        split: {
            f'relative to {reference}': {arm: asdict(x) for arm, x in arms.items()}
            for reference, arms in by_reference.items()
        }
        for split, by_reference in summaries.items()
    }
    put(json.dumps(rewritten(content, _null_for_nan), indent=1) + '\n', str(folder / 'report.json'))
    return text


def markdown(results: Results, summaries: Mapping[str, Mapping[str, Summaries]]) -> str:
    """Write the tables and what has to be known to read them.

    Args:
        results: What came out.
        summaries: By split and the arm that they are relative to, the baseline first.
    """
    parts = ['# Comparison\n']
    for split, by_reference in summaries.items():
        parts += [f'## {SPLITS[split].capitalize()}\n', _ap_table(by_reference[BASELINE]), '']
        for reference, arms in by_reference.items():
            if has_differences(arms, reference):
                heading = f'Difference to {_name(reference)}, paired by seed:\n'
                parts += [heading, _difference_table(arms, reference), '']
    parts += [*_reading_notes(results, summaries), '']
    return '\n'.join(parts)


def has_differences(arms: Summaries, reference: str = BASELINE) -> bool:
    """Tell whether an arm other than the baseline shares a seed with the reference."""
    return any(x.differences for x in _rivals(arms, reference).values())


def _rivals(arms: Summaries, reference: str) -> Summaries:
    return {arm: x for arm, x in arms.items() if arm not in (BASELINE, reference)}


def _name(arm: str) -> str:
    return 'the baseline' if arm == BASELINE else arm


def _ap_names(aps: Iterable[Mapping[str, Any]]) -> list[str]:
    """Choose the columns: those of boxes, and of masks if there are any."""
    found = {name for ap in aps for name in ap}
    return [*AP_NAMES, *(name for name in MASK_AP_NAMES if name in found)]


def _ap_table(arms: Summaries) -> str:
    names = _ap_names(x.ap for x in arms.values())
    costs = {'training time': 'time_ratio', MEDIAN_TIME: 'median_time_ratio'}
    if not any(x.median_time_ratio.count for x in arms.values()):
        del costs[MEDIAN_TIME]
    costs['peak memory'] = 'memory_ratio'
    rows = [
        [
            arm,
            str(len(x.seeds)),
            *(_level(x.ap.get(name)) for name in names),
            *(times_text(getattr(x, field)) for field in costs.values()),
        ]
        for arm, x in arms.items()
    ]
    return table(['arm', 'seeds', *names, *costs], rows)


def _difference_table(arms: Summaries, reference: str) -> str:
    names = _ap_names(x.differences for x in arms.values())
    rows = [
        [arm, x.verdict, *(difference_text(x.differences.get(name)) for name in names)]
        for arm, x in _rivals(arms, reference).items()
    ]
    return table(['arm', 'AP is', *(f'Δ {name}' for name in names)], rows)


def _reading_notes(results: Results, summaries: Mapping[str, Mapping[str, Summaries]]) -> list[str]:
    differences = [
        x.differences['AP']
        for by_reference in summaries.values()
        for reference, arms in by_reference.items()
        for x in _rivals(arms, reference).values()
        if x.differences
    ]
    intervals = sum(x.low is not None for x in differences)
    devices = sorted({cell.device for cells in results.values() for cell in cells.values()})
    notes = [
        '- AP in percent, mean ± half the 95% t-interval over seeds; Δ with its 95% t-interval and '
        'the number of seeds that both arms have. An interval that contains 0 is no evidence of a '
        'difference, nor of there being none.',
        '- Of the last checkpoint, not the best: to choose on the data that one reports flatters.',
        '- Training time is the sum over iterations, without validation; other work on the machine '
        f'adds to it, and less to {MEDIAN_TIME}, where that was noted. Memory is the peak, '
        f'{_memory_kind(devices)}. All relative to the baseline with the same seed '
        f'({", ".join(devices)}).',
    ]
    if intervals > 1:
        notes.append(
            f'- {intervals} differences of AP have an interval, and each stands for itself: without '
            f'any effect, about {0.05 * intervals:.2g} of {intervals} would exclude 0 by chance.'
        )
    if BASELINE not in results:
        notes.append('- There is no result of the baseline yet, so there are no differences.')
    return notes


def _memory_kind(devices: Sequence[str]) -> str:
    on_cpu = "of the whole process in memory (Python's own included)"
    on_gpu = 'of what torch allocated on the GPU'
    return on_cpu if devices == ['CPU'] else on_gpu


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


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown."""
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def as_csv(results: Results) -> str:
    """Write a row for each cell and split."""
    text = io.StringIO()
    all_cells = [cell for cells in results.values() for cell in cells.values()]
    aps = _ap_names(cell.ap(split) for cell in all_cells for split in cell.metrics)
    cost_names = ['iterations', 'train_seconds', 'step_seconds', 'peak_memory_mib']
    names = ['arm', 'seed', 'split', *aps, *cost_names, 'device']
    writer = csv.DictWriter(text, names, lineterminator='\n')
    writer.writeheader()
    for arm, cells in results.items():
        for seed, cell in cells.items():
            for split in cell.metrics:
                row = {'arm': arm, 'seed': seed, 'split': split, 'device': cell.device}
                row.update({k: round(v, 3) for k, v in cell.ap(split).items()})
                row.update({x: getattr(cell, x.removesuffix('_mib')) for x in cost_names})
                writer.writerow(row)
    return text.getvalue()


def _null_for_nan(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and math.isnan(value) else value
