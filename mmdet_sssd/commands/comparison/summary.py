"""What the seeds of each arm say together: means, paired differences, costs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .arms import BASELINE
from .metrics import class_metrics
from .results import CellResult, Results
from .statistics import Estimate, estimate, paired_difference, paired_ratio, verdict

SPLITS = {
    'val': 'validation data, last checkpoint',
    'test': 'test data, last checkpoint',
}


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

    cells, others = have[arm], have.get(reference, {})
    columns = _columns(cells, lambda cell: cell.ap(split))
    differences = _differences(cells, others, lambda cell: cell.ap(split))
    worth = verdict(differences.get('AP', estimate([])), name_of(reference))
    return ArmSummary(
        seeds=list(cells),
        ap={name: estimate(list(values.values())) for name, values in columns.items()},
        differences=differences,
        class_differences=_differences(cells, others, by_class),
        verdict='' if arm == reference else worth,
        time_ratio=_ratio(cells, others, 'train_seconds'),
        median_time_ratio=_ratio(cells, others, 'median_seconds'),
        memory_ratio=_ratio(cells, others, 'peak_memory'),
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


def has_differences(arms: Summaries, reference: str = BASELINE) -> bool:
    """Tell whether an arm other than the baseline shares a seed with the reference."""
    return any(x.differences for x in rivals(arms, reference).values())


def rivals(arms: Summaries, reference: str) -> Summaries:
    """Leave out the baseline and the reference."""
    return {arm: x for arm, x in arms.items() if arm not in (BASELINE, reference)}


def name_of(arm: str) -> str:
    """Name an arm in a sentence."""
    return 'the baseline' if arm == BASELINE else arm


def summarize_all(results: Results, against: Sequence[str] = ()) -> dict[str, dict[str, Summaries]]:
    """Summarise by split and reference: the baseline first, then the arms of ``against``."""
    return {
        split: {name: summarize(results, split, name) for name in (BASELINE, *against)}
        for split in SPLITS
        if any(cell.ap(split) for cells in results.values() for cell in cells.values())
    }
