"""The page of a comparison: its report with what was compared, plots and example pictures."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from mmengine.config import Config

from ...config_tree import value_at
from ...datasets import leaf_configs
from .arms import BASELINE
from .cells import Cell
from .examples import LEAST_SCORE, find_examples
from .report import Report
from .results import CellResult, Results, ResultsFolder
from .summary import SPLITS

NO_CHECKPOINTS = (
    'No example pictures: two arms need checkpoints of the same seed. Train with --keep-checkpoints '
    'last, and give --report-only the --work-dir of the training.'
)


def write_page(
    report: Report,
    folder: ResultsFolder,
    results: Results,
    plots: Sequence[Path],
    work_dir: Path,
    count: int,
) -> Path:
    """Write ``report.html`` into a folder of results.

    Args:
        report: The report; what only the page has is filled in.
        folder: The folder, with its ``results.json``.
        results: What is reported on.
        plots: PNG files.
        work_dir: Where checkpoints may lie.
        count: How many images to draw with predictions.
    """
    content = json.loads(folder.file.read_text(encoding='utf-8'))
    cells = [cell for by_seed in results.values() for cell in by_seed.values()]
    report.facts = _facts(folder.config(cells[0].arm), cells)
    report.commands = content['commands']
    report.configs = dict(_listing(arm, content['arms'][arm]) for arm in results)
    report.curves = next((x for x in plots if x.stem == 'learning_curves'), None)
    for section in report.sections:
        if section.split:
            section.plots.extend(x for x in plots if x.stem.endswith(f'_{section.split}'))
    _add_examples(report, [Cell(x.arm, x.seed, work_dir, folder) for x in cells], count)
    path = folder.path / 'report.html'
    report.write(path)
    return path


def _facts(config: dict[str, Any] | None, cells: Sequence[CellResult]) -> dict[str, str]:
    """Say what was compared: the config of one arm, and what the cells have in common."""
    cfg = Config(config or {})
    detector = value_at(cfg, 'model.student.type') or value_at(cfg, 'model.type')
    files = {
        part: ', '.join(
            str(Path(leaf.get('data_root') or '', leaf['ann_file']))
            for _, leaf in leaf_configs(cfg, f'{part}_dataloader.dataset')
            if leaf.get('ann_file')
        )
        for part in ('train', *SPLITS)
        if part == 'train' or any(part in cell.metrics for cell in cells)
    }
    lengths = {f'{x.curve[-1][0]} {x.unit}s' for x in cells if x.curve}
    facts = {
        'Detector': detector,
        'Arms': ', '.join(dict.fromkeys(x.arm for x in cells)),
        'Seeds': ', '.join(map(str, sorted({x.seed for x in cells}))),
        'Length': ', '.join(sorted(lengths)),
        'Labels': '; '.join(f'{part}: {names}' for part, names in files.items() if names),
        'Device': ', '.join(sorted({x.device for x in cells})),
        'Versions': '; '.join(
            sorted({', '.join(map(' '.join, x.versions.items())) for x in cells})
        ),
    }
    return {name: value for name, value in facts.items() if value}


def _listing(arm: str, record: Mapping[str, Any]) -> tuple[str, str]:
    """Give the config of an arm, or what it changes in another's, as ``results.json`` has it."""
    if 'base' in record:
        title, config = f'{arm}: changes to {record["base"]}', record['overrides']
    else:
        title, config = f'{arm}: config', record.get('config')
    return title, yaml.safe_dump(config, sort_keys=False) if config else 'unknown'


def _add_examples(report: Report, cells: Sequence[Cell], count: int) -> None:
    """Add pictures of the seed that most arms have a checkpoint of, or say why there are none."""
    kept = [cell for cell in cells if cell.checkpoint]
    seeds = Counter(cell.seed for cell in kept).most_common(1)
    if not count or not seeds or seeds[0][1] < 2:
        report.examples_note = NO_CHECKPOINTS if count else ''
        return
    chosen = [cell for cell in kept if cell.seed == seeds[0][0]]
    chosen.sort(key=lambda cell: cell.arm != BASELINE)
    split = 'test' if all('test' in cell.result.metrics for cell in chosen) else 'val'
    try:
        report.examples = find_examples(chosen, split, count)
    except Exception as error:  # whatever is wrong with data or weights, the report comes out
        report.examples_note = f'No example pictures: {type(error).__name__}: {error}'
        print(report.examples_note)
        return
    first, *others = (cell.arm for cell in chosen)
    lead = f'{", ".join(others)} lead{"s" if len(others) == 1 else " on average"}'
    report.examples_note = (
        f'{SPLITS[split].partition(",")[0].capitalize()}, seed {seeds[0][0]}: in turn an image where '
        f'{lead} {first} most in AP, and one where {first} leads most. They were picked for that, so '
        f'they say nothing about the average. Boxes with a score of {LEAST_SCORE} or more are drawn; '
        'AP counts all.'
    )
