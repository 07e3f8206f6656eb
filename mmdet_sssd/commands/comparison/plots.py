"""Plots of a comparison."""

import math
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .arms import BASELINE
from .metrics import AP_NAMES, MASK_AP_NAMES
from .results import Results, RunResult
from .summary import (
    SPLITS,
    ArmSummary,
    Summaries,
    has_differences,
    rivals,
    summarize,
)

COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')  # Okabe and Ito's
GREY = '#777777'
LONGEST_TITLE = 36  # characters that fit above a panel
MAX_COLUMNS = 3
MAX_CLASSES = 20
DPI = 150


def draw_plots(folder: Path, results: Results) -> list[Path]:
    """Draw every plot that the results can fill: PNG files in a folder."""
    figures = {'learning_curves': draw_curves(results)}
    for split in SPLITS:
        summaries = summarize(results, split)
        if has_differences(summaries):
            figures[f'differences_{split}'] = draw_differences(summaries, split)
    paths = [folder / f'{name}.png' for name in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        figure.savefig(path, dpi=DPI)
    return paths


def draw_curves(results: Results) -> Figure:
    """Draw AP during training, a panel for each arm, with the baseline in grey in each."""
    arms = [arm for arm in results if arm != BASELINE] or [BASELINE]
    figure, panels = _panels(arms, width=4.2, height=3.2)
    for arm, color, axes in zip(arms, _colors(arms), panels, strict=True):
        if BASELINE in results and arm != BASELINE:
            _draw_curve(axes, results[BASELINE].values(), BASELINE, GREY, '--')
        _draw_curve(axes, results[arm].values(), arm, color, '-')
        axes.grid(alpha=0.3)
        axes.legend(loc='lower right', fontsize='small')
    unit = next(iter(results[arms[0]].values())).unit
    figure.supxlabel(unit, fontsize='medium')
    figure.supylabel('AP on the validation data', fontsize='medium')
    figure.suptitle('Mean over seeds, and from the lowest to the highest', fontsize='medium')
    return figure


def _draw_curve(
    axes: Axes, runs: Collection[RunResult], label: str, color: str, style: str
) -> None:
    """Draw the mean over seeds and a band from the lowest to the highest."""
    curves = [dict(run.curve) for run in runs]
    steps = sorted(set.intersection(*map(set, curves)))
    values = np.array([[curve[step] for step in steps] for curve in curves])
    number = f'{len(curves)} seed{"s" * (len(curves) > 1)}'
    axes.plot(steps, values.mean(0), style, color=color, label=f'{label} ({number})', marker='.')
    axes.fill_between(steps, values.min(0), values.max(0), color=color, alpha=0.2, linewidth=0)
    axes.xaxis.get_major_locator().set_params(integer=True)


def draw_differences(summaries: Summaries, split: str) -> Figure:
    """Draw the differences to the baseline, overall, by object size and class; a panel for each arm."""
    arms = {arm: x for arm, x in rivals(summaries).items() if x.differences}
    known = [*AP_NAMES, *MASK_AP_NAMES]
    upper = [name for name in known if any(name in x.differences for x in arms.values())]
    lower = _shown_classes(arms.values())
    names = [*upper, *lower]
    titles = [f'{arm} (n={x.differences["AP"].count})' for arm, x in arms.items()]
    figure, panels = _panels(titles, width=3.6, height=1.3 + 0.28 * len(names))
    for arm, color, axes in zip(arms.values(), _colors(arms), panels, strict=True):
        values = {**arm.class_differences, **arm.differences}
        for row, x in enumerate(values.get(name) for name in names):
            if x and x.low is not None:
                axes.plot([x.low, x.high], [row, row], color=color, linewidth=2, alpha=0.6)
            if x and x.count:
                axes.plot(x.mean, row, 'o', color=color, markersize=5)
        axes.axvline(0, color=GREY, linewidth=1)
        if lower:
            axes.axhline(len(upper) - 0.5, color=GREY, linewidth=0.5)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(axis='x', alpha=0.3)
    figure.supxlabel('difference of AP to the baseline', fontsize='medium')
    title = f'{SPLITS[split].capitalize()}\nmean of the paired differences, 95% t-interval'
    figure.suptitle(title, fontsize='medium')
    return figure


def _shown_classes(arms: Iterable[ArmSummary]) -> list[str]:
    """Choose the classes to draw: all, or those whose AP differs most."""
    largest: dict[str, float] = {}
    for arm in arms:
        for name, x in arm.class_differences.items():
            largest[name] = max(largest.get(name, 0.0), abs(x.mean))
    if len(largest) <= MAX_CLASSES:
        return list(largest)
    return sorted(largest, key=largest.get, reverse=True)[:MAX_CLASSES]


def _colors(arms: Collection[str]) -> list[str]:
    """Choose the arms' colours, grey for the baseline."""
    return [
        GREY if arm == BASELINE else COLORS[index % len(COLORS)] for index, arm in enumerate(arms)
    ]


def _panels(titles: Collection[str], width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Make a figure with a panel for each title, sizes in inches; long titles get several lines."""
    columns = min(len(titles), MAX_COLUMNS)
    rows = math.ceil(len(titles) / columns)
    size = (max(5.5, 1 + columns * width), 0.7 + rows * height)
    figure = Figure(figsize=size, layout='constrained')
    grid = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
    for axes in grid[len(titles) :]:
        axes.remove()
    panels = grid[: len(titles)]
    for axes in panels[-columns:]:  # the lowest of each column
        axes.xaxis.set_tick_params(labelbottom=True)
    for axes, title in zip(panels, titles, strict=True):
        is_long = len(title) > LONGEST_TITLE
        text = title.replace('+', '\n+') if is_long else title
        axes.set_title(text, fontsize='medium' if is_long else 'large')
    return figure, panels
