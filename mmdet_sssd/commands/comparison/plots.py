"""Plots of a comparison: AP along training, and differences to the baseline."""

from collections.abc import Collection, Iterable
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .arms import BASELINE
from .metrics import AP_NAMES, MASK_AP_NAMES
from .results import Results, RunResult
from .summary import SPLITS, Estimates, differences

COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')  # Okabe and Ito's
GREY = '#777777'
DPI = 150


def draw_plots(folder: Path, results: Results) -> list[Path]:
    """Draw every plot that the results can fill: PNG files in a folder."""
    figures = {'learning_curves': draw_curves(results)}
    for split in SPLITS:
        arms = {arm: found for arm, found in differences(results, split).items() if found}
        if arms:
            figures[f'differences_{split}'] = draw_differences(arms, split)
    paths = [folder / f'{name}.png' for name in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        figure.savefig(path, dpi=DPI)
    return paths


def draw_curves(results: Results) -> Figure:
    """Draw AP during training, the baseline in grey."""
    figure = Figure(figsize=(7, 4.5), layout='constrained')
    axes = figure.subplots()
    colors = _colors(results)
    for arm, runs in results.items():
        _draw_curve(axes, runs.values(), arm, colors[arm])
    unit = next(run.unit for runs in results.values() for run in runs.values())
    axes.set(xlabel=unit, ylabel='AP on the validation data')
    axes.set_title('Mean over seeds, and from the lowest to the highest', fontsize='medium')
    axes.grid(alpha=0.3)
    axes.legend(fontsize='small')
    return figure


def _draw_curve(axes: Axes, runs: Collection[RunResult], arm: str, color: str) -> None:
    """Draw the mean over seeds and a band from the lowest to the highest."""
    curves = [dict(run.curve) for run in runs]
    steps = sorted(set.intersection(*map(set, curves)))
    values = np.array([[curve[step] for step in steps] for curve in curves])
    label = f'{arm} ({len(curves)} seed{"s" * (len(curves) > 1)})'
    axes.plot(steps, values.mean(0), color=color, label=label, marker='.')
    axes.fill_between(steps, values.min(0), values.max(0), color=color, alpha=0.2, linewidth=0)
    axes.xaxis.get_major_locator().set_params(integer=True)


def draw_differences(arms: Estimates, split: str) -> Figure:
    """Draw the differences of arms to the baseline on a split, overall, by IoU and by object size."""
    known = [*AP_NAMES, *MASK_AP_NAMES]
    names = [name for name in known if any(name in found for found in arms.values())]
    figure = Figure(figsize=(7, 1.5 + 0.15 * len(names) * (1 + len(arms))), layout='constrained')
    axes = figure.subplots()
    colors = _colors(arms)
    for index, (arm, found) in enumerate(arms.items()):
        offset = (index - (len(arms) - 1) / 2) * 0.8 / len(arms)  # arms side by side in a row
        shown = [(row + offset, found[name]) for row, name in enumerate(names) if name in found]
        rows, estimates = zip(*shown, strict=True)
        axes.errorbar(
            [x.mean for x in estimates],
            rows,
            xerr=[0 if x.low is None else x.high - x.mean for x in estimates],
            fmt='o',
            color=colors[arm],
            label=f'{arm} (n={found["AP"].count})',
        )
    axes.axvline(0, color=GREY, linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis='x', alpha=0.3)
    axes.set_xlabel('difference of AP to the baseline')
    axes.set_title(f'{SPLITS[split]}\nmean of the paired differences, 95% t-interval')
    axes.legend(fontsize='small')
    return figure


def _colors(arms: Iterable[str]) -> dict[str, str]:
    """Choose the arms' colours, grey for the baseline."""
    others = (arm for arm in arms if arm != BASELINE)
    return {BASELINE: GREY, **dict(zip(others, cycle(COLORS), strict=False))}
