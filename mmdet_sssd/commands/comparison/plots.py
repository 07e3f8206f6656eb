"""Plots of a comparison."""

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .arms import BASELINE
from .metrics import AP_NAMES, MASK_AP_NAMES
from .results import CellResult, Results
from .statistics import Estimate, estimate
from .summary import SPLITS, ArmSummary, has_differences, summarize

COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')  # Okabe and Ito's
MARKERS = 'sD^vP*X<>'
GREY = '#777777'
LONGEST_TITLE = 36  # characters that fit above a panel
MAX_COLUMNS = 3
MAX_CLASSES = 20
DPI = 150


def draw_plots(folder: Path, results: Results) -> list[Path]:
    """Draw every plot that the results can fill.

    Args:
        folder: Where to write the PNG files.
        results: Results by arm and seed.

    Returns:
        The files.
    """
    figures = {'learning_curves': draw_curves(results)}
    for split in SPLITS:
        summaries = summarize(results, split)
        if not summaries:
            continue
        if has_differences(summaries):
            figures[f'differences_{split}'] = draw_differences(summaries, split)
        figures[f'ap_against_time_{split}'] = draw_time(results, split)
        for name, arms in find_sweeps(summaries).items():
            figures[f'sweep_{name}_{split}'] = draw_sweep(name, arms, results, split)
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f'{name}.png')
        figure.savefig(paths[-1], dpi=DPI)
    return paths


def _styles(arms: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Give each arm its colour and marker, the baseline grey."""
    rivals = [arm for arm in arms if arm != BASELINE]
    styles = {
        arm: (COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)])
        for index, arm in enumerate(rivals)
    }
    return {arm: styles.get(arm, (GREY, 'o')) for arm in arms}


def draw_curves(results: Results) -> Figure:
    """Draw AP during training, a panel for each arm, with the baseline in grey in each."""
    rivals = [arm for arm in results if arm != BASELINE] or [BASELINE]
    figure, panels = _panels(len(rivals), width=4.2, height=3.2, sharex=True, sharey=True)
    styles = _styles(results)
    for arm, axes in zip(rivals, panels, strict=True):
        if BASELINE in results and arm != BASELINE:
            _draw_curve(axes, results[BASELINE], BASELINE, GREY, '--')
        _draw_curve(axes, results[arm], arm, styles[arm][0], '-')
        _head_panel(axes, arm)
        axes.grid(alpha=0.3)
        axes.legend(loc='lower right', fontsize='small')
    unit = next(iter(next(iter(results.values())).values())).unit
    figure.supxlabel(unit, fontsize='medium')
    figure.supylabel('AP on the validation data', fontsize='medium')
    figure.suptitle('Mean over seeds, and from the lowest to the highest', fontsize='medium')
    return figure


def _draw_curve(
    axes: Axes, cells: Mapping[int, CellResult], label: str, color: str, style: str
) -> None:
    """Draw the mean over seeds and a band from the lowest to the highest."""
    curves = [dict(cell.curve) for cell in cells.values()]
    steps = sorted(set.intersection(*map(set, curves)))
    values = np.array([[curve[step] for step in steps] for curve in curves])
    number = f'{len(curves)} seed{"s" * (len(curves) > 1)}'
    axes.plot(steps, values.mean(0), style, color=color, label=f'{label} ({number})', marker='.')
    axes.fill_between(steps, values.min(0), values.max(0), color=color, alpha=0.2, linewidth=0)
    axes.xaxis.get_major_locator().set_params(integer=True)


def draw_differences(summaries: Mapping[str, ArmSummary], split: str) -> Figure:
    """Draw the differences to the baseline, overall, by object size and class; a panel for each arm."""
    rivals = {arm: x for arm, x in summaries.items() if arm != BASELINE and x.differences}
    known = [*AP_NAMES, *MASK_AP_NAMES]
    names = [name for name in known if any(name in x.differences for x in rivals.values())]
    arms = {
        f'{arm} (n={x.differences["AP"].count})': {**x.class_differences, **x.differences}
        for arm, x in rivals.items()
    }
    title = f'{SPLITS[split].capitalize()}\nmean of the paired differences, 95% t-interval'
    label = 'difference of AP to the baseline'
    return draw_rows(arms, (names, _shown_classes(rivals.values())), label, title)


def draw_rows(
    arms: Mapping[str, Mapping[str, Estimate]],
    groups: tuple[Sequence[str], Sequence[str]],
    label: str,
    title: str,
) -> Figure:
    """Draw estimates by name from top to bottom, a panel for each arm.

    Args:
        arms: Estimates by the panel's title and by name.
        groups: The names, in two groups with a line between them.
        label: What the estimates are.
        title: The figure's title.
    """
    upper, lower = groups
    names = [*upper, *lower]
    height = 1.3 + 0.28 * len(names)
    figure, panels = _panels(len(arms), width=3.6, height=height, sharex=True, sharey=True)
    styles = _styles(arms)
    for (arm, values), axes in zip(arms.items(), panels, strict=True):
        _draw_estimates(axes, [values.get(name) for name in names], styles[arm][0])
        axes.axvline(0, color=GREY, linewidth=1)
        if lower:
            axes.axhline(len(upper) - 0.5, color=GREY, linewidth=0.5)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(axis='x', alpha=0.3)
        _head_panel(axes, arm)
    figure.supxlabel(label, fontsize='medium')
    figure.suptitle(title, fontsize='medium')
    return figure


def _shown_classes(arms: Collection[ArmSummary]) -> list[str]:
    """Choose the classes to draw: all, or those whose AP differs most."""
    largest: dict[str, float] = {}
    for arm in arms:
        for name, x in arm.class_differences.items():
            largest[name] = max(largest.get(name, 0.0), abs(x.mean))
    if len(largest) <= MAX_CLASSES:
        return list(largest)
    return sorted(largest, key=largest.get, reverse=True)[:MAX_CLASSES]


def _draw_estimates(axes: Axes, values: Sequence[Estimate | None], color: str) -> None:
    """Draw estimates from top to bottom, with their intervals as horizontal lines."""
    for row, x in enumerate(values):
        if x is None or not x.count:
            continue
        if x.low is not None:
            axes.plot([x.low, x.high], [row, row], color=color, linewidth=2, alpha=0.6)
        axes.plot(x.mean, row, 'o', color=color, markersize=5)


def draw_time(results: Results, split: str) -> Figure:
    """Draw AP against training time, the mean of each arm but those of sweeps, with its interval."""
    figure = Figure(figsize=(7.5, 4), layout='constrained')
    axes = figure.add_subplot()
    evaluated = {
        arm: [cell.train_seconds for cell in cells.values() if cell.ap(split)]
        for arm, cells in results.items()
    }
    times = {arm: np.mean(x) for arm, x in evaluated.items() if x}
    times = {arm: x for arm, x in times.items() if '+' not in arm} or times
    unit, seconds = _time_unit(max(times.values()))
    for arm, (color, marker) in _styles(times).items():
        mean = estimate(_aps(results[arm], split))
        axes.errorbar(
            times[arm] / seconds,
            mean.mean,
            yerr=mean.half_width,
            fmt=marker,
            color=color,
            linewidth=1.2,
            capsize=3,
            label=f'{arm} (n={mean.count})',
        )
    axes.set_xlim(0, 1.05 * axes.get_xlim()[1])
    axes.set_xlabel(f'training time ({unit}, without validation)')
    axes.set_ylabel('AP')
    axes.set_title(f'{SPLITS[split].capitalize()}: mean, 95% t-interval', fontsize='medium')
    axes.grid(alpha=0.3)
    figure.legend(loc='outside right upper', fontsize='small')
    return figure


def _aps(cells: Mapping[int, CellResult], split: str) -> list[float]:
    return [cell.ap(split)['AP'] for cell in cells.values() if cell.ap(split)]


def _time_unit(seconds: float) -> tuple[str, float]:
    return next(
        x for x in (('h', 3600.0), ('min', 60.0), ('s', 1.0)) if seconds >= x[1] or x[1] == 1
    )


def find_sweeps(summaries: Mapping[str, ArmSummary]) -> dict[str, dict[str, str]]:
    """Find the arms that differ in one value alone.

    Returns:
        By what is varied, such as ``'sssd+distill_coef'``, the arms by value; two or more.
    """
    sweeps: dict[str, dict[str, str]] = {}
    for arm in summaries:
        if match := re.fullmatch(r'(.+\+[^=+]+)=([^=]+)', arm):
            sweeps.setdefault(match[1], {})[match[2]] = arm
    return {name: arms for name, arms in sweeps.items() if len(arms) > 1}


def draw_sweep(name: str, arms: Mapping[str, str], results: Results, split: str) -> Figure:
    """Draw AP against a setting, with the baseline and the arm that is varied as bands."""
    figure = Figure(figsize=(6, 4), layout='constrained')
    axes = figure.add_subplot()
    positions = _place(axes, list(arms))
    for position, arm in zip(positions, arms.values(), strict=True):
        aps = _aps(results[arm], split)
        mean = estimate(aps)
        axes.plot([position] * len(aps), aps, '.', color=COLORS[0], alpha=0.4)
        axes.errorbar(position, mean.mean, mean.half_width, fmt='o', color=COLORS[0], capsize=4)
    arm, _, key = name.rpartition('+')
    for reference, color in ((BASELINE, GREY), (arm, COLORS[1])):
        mean = estimate(_aps(results.get(reference, {}), split))
        if mean.count:
            axes.axhline(
                mean.mean, color=color, linestyle='--', label=f'{reference} (n={mean.count})'
            )
            axes.legend(loc='best', fontsize='small')
        if mean.low is not None:
            axes.axhspan(mean.low, mean.high, color=color, alpha=0.15, linewidth=0)
    axes.set_xlabel(f'{key} ({arm})')
    axes.set_ylabel('AP')
    axes.set_title(f'{SPLITS[split].capitalize()}: mean, 95% t-interval, seeds', fontsize='medium')
    axes.grid(alpha=0.3)
    return figure


def _place(axes: Axes, values: Sequence[str]) -> list[float]:
    """Choose the axis for the values of a sweep, and say where each is on it."""
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        numbers = []
    positive = [number for number in numbers if number > 0]
    if positive and min(numbers) >= 0 and max(positive) >= 10 * min(positive):
        if min(numbers) > 0:
            axes.set_xscale('log')
        else:
            axes.set_xscale('symlog', linthresh=min(positive))
        axes.set_xticks(numbers, values)
        axes.set_xticks([], minor=True)
        return numbers
    if numbers:
        axes.set_xticks(numbers, values)
        return numbers
    axes.set_xticks(range(len(values)), values)
    axes.set_xlim(-0.5, len(values) - 0.5)
    return list(range(len(values)))


def _panels(count: int, width: float, height: float, **shared: bool) -> tuple[Figure, list[Axes]]:
    """Make a figure with a grid of panels, sizes in inches."""
    columns = min(count, MAX_COLUMNS)
    rows = math.ceil(count / columns)
    figure = Figure(
        figsize=(max(5.5, 1 + columns * width), 0.7 + rows * height), layout='constrained'
    )
    grid = figure.subplots(rows, columns, squeeze=False, **shared).flat
    for axes in grid[count:]:
        axes.remove()
    for axes in grid[max(0, count - columns) : count]:  # the lowest of each column
        axes.xaxis.set_tick_params(labelbottom=True)
    return figure, list(grid[:count])


def _head_panel(axes: Axes, title: str) -> None:
    """Set a panel's title; a long one gets a line for each change of the arm."""
    if len(title) > LONGEST_TITLE:
        title = title.replace('+', '\n+')
    axes.set_title(title, fontsize='large' if len(title) <= LONGEST_TITLE else 'medium')
