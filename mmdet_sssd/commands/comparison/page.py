"""The page of a comparison: its report with what was compared, plots and example pictures."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from mmengine.config import Config

from ...config_tree import overrides, value_at
from ...datasets import leaf_configs
from .arms import BASELINE
from .examples import LEAST_SCORE, draw_examples
from .report import Report
from .results import ResultsFolder, RunResult
from .runs import Run
from .summary import SPLITS

NO_CHECKPOINTS = (
    'No example pictures: two arms need checkpoints of the same seed. Train with --keep-checkpoints '
    'last, and give --report-only the --work-dir of the training.'
)


def write_page(
    report: Report, folder: ResultsFolder, runs: Sequence[Run], plots: Sequence[Path], count: int
) -> Path:
    """Write ``report.html`` into a folder of results.

    Args:
        report: The report; what only the page has is filled in.
        folder: The folder, with its ``results.json``.
        runs: What is reported on; some may have checkpoints.
        plots: PNG files.
        count: How many images to draw with predictions.
    """
    report.commands, records = folder.records()
    configs = {run.arm: records[run.arm].config for run in runs}
    report.facts = _facts(configs[runs[0].arm], [records[x.arm].runs[x.seed] for x in runs])
    report.configs = _listings(configs)
    report.curves = next((x for x in plots if x.stem == 'learning_curves'), None)
    for section in report.sections:
        section.plots.extend(x for x in plots if x.stem.endswith(f'_{section.split}'))
    _add_examples(report, runs, count)
    path = folder.path / 'report.html'
    report.write(path)
    return path


def _facts(config: dict[str, Any] | None, results: Sequence[RunResult]) -> dict[str, str]:
    """Say what was compared: the config of one arm, and what the results have in common."""
    cfg = Config(config or {})
    files = {
        part: ', '.join(
            str(Path(leaf.get('data_root') or '', leaf['ann_file']))
            for _, leaf in leaf_configs(cfg, f'{part}_dataloader.dataset')
            if leaf.get('ann_file')
        )
        for part in ('train', *SPLITS)
        if part == 'train' or any(part in x.metrics for x in results)
    }
    versions = {', '.join(map(' '.join, x.versions.items())) for x in results}
    facts = {
        'Detector': value_at(cfg, 'model.student.type') or value_at(cfg, 'model.type'),
        'Arms': ', '.join(dict.fromkeys(x.arm for x in results)),
        'Seeds': ', '.join(map(str, sorted({x.seed for x in results}))),
        'Length': ', '.join(sorted({f'{x.curve[-1][0]} {x.unit}s' for x in results if x.curve})),
        'Labels': '; '.join(f'{part}: {names}' for part, names in files.items() if names),
        'Device': ', '.join(sorted({x.device for x in results})),
        'Versions': '; '.join(sorted(versions)),
    }
    return {name: value for name, value in facts.items() if value}


def _listings(configs: dict[str, dict[str, Any] | None]) -> dict[str, str]:
    """List the first config, and what the others change in it."""
    listings = {}
    first, base = next(iter(configs.items()))
    for arm, config in configs.items():
        title = f'{arm}: config'
        if arm != first and base and config:
            title, config = f'{arm}: changes to {first}', overrides(base, config)
        listings[title] = yaml.safe_dump(config, sort_keys=False) if config else 'unknown'
    return listings


def _add_examples(report: Report, runs: Sequence[Run], count: int) -> None:
    """Add pictures of the seed that most arms have a checkpoint of, or say why there are none."""
    kept = [run for run in runs if run.checkpoint]
    seeds = Counter(run.seed for run in kept).most_common(1)
    if not count or not seeds or seeds[0][1] < 2:
        report.examples_note = NO_CHECKPOINTS if count else ''
        return
    seed = seeds[0][0]
    chosen = sorted((x for x in kept if x.seed == seed), key=lambda run: run.arm != BASELINE)
    split = 'test' if all('test' in run.result.metrics for run in chosen) else 'val'
    try:
        report.examples = draw_examples(chosen, split, count)
    except Exception as error:  # whatever is wrong with data or weights, the report comes out
        report.examples_note = f'No example pictures: {type(error).__name__}: {error}'
        print(report.examples_note)
        return
    report.examples_note = (
        f'{SPLITS[split].partition(",")[0].capitalize()}, seed {seed}: images at even distances in the '
        f'data set. Boxes with a score of {LEAST_SCORE} or more are drawn; AP counts all.'
    )
