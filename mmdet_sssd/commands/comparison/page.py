"""The page of a comparison: its report with what was compared, and plots."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from mmengine.config import Config

from ...config_tree import overrides, value_at
from ...datasets import leaf_configs
from .report import Report
from .results import Results, ResultsFolder, RunResult
from .summary import SPLITS


def write_page(
    report: Report, folder: ResultsFolder, results: Results, plots: Sequence[Path]
) -> Path:
    """Fill in what only the page of a report has, and write ``report.html`` into a results folder."""
    report.commands, records = folder.records()
    configs = {arm: records[arm].config for arm in results}
    runs = [run for by_seed in results.values() for run in by_seed.values()]
    report.facts = _facts(configs[runs[0].arm], runs)
    report.configs = _listings(configs)
    report.curves = next((x for x in plots if x.stem == 'learning_curves'), None)
    for section in report.sections:
        section.plots.extend(x for x in plots if x.stem.endswith(f'_{section.split}'))
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
