"""The cells of a comparison, an arm trained with a seed: their configs, folders and results."""

import copy
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS
from mmengine.config import Config

from ...checkpoints import AtomicLocalBackend
from ...datasets import evaluator_configs
from ...errors import ConfigError
from .metrics import main_metric, standard_metrics
from .schedule import length

IMPORTS = ('mmdet_sssd', 'mmdet_sssd.commands.comparison.training_cost_hook')
CHECKPOINT_HOOKS = (None, 'CheckpointHook', 'SafeCheckpointHook')
TEST_KEYS = {'test_dataloader', 'test_evaluator', 'test_cfg'}


@dataclass(frozen=True)
class Cell:
    """An arm that is trained with a seed.

    Attributes:
        arm: Name of the arm.
        seed: ``randomness.seed``.
        work_dir: Folder of the comparison, with logs and checkpoints.
        results: Folder of the comparison's results, which is all that a report needs.
    """

    arm: str
    seed: int
    work_dir: Path
    results: Path

    def __str__(self) -> str:
        return f'{self.arm} seed {self.seed}'

    @property
    def folder(self) -> Path:
        """The work directory of the run."""
        return self.work_dir / self.arm / f'seed_{self.seed}'

    @property
    def log(self) -> Path:
        """What the processes of the cell print."""
        return self.folder / 'output.log'

    @property
    def result_file(self) -> Path:
        """Is there when the cell is done."""
        return self.results / self.arm / f'seed_{self.seed}.json'

    @property
    def checkpoint(self) -> Path | None:
        """The last checkpoint, if there is one."""
        name = self.folder / 'last_checkpoint'
        path = self.folder / Path(name.read_text(encoding='utf-8')).name if name.is_file() else None
        return path if path and path.is_file() else None

    @property
    def config_file(self) -> Path:
        """The config that it is trained with; mmengine writes what it makes of it into the folder."""
        return self.folder.with_suffix('.py')

    def config(self, cfg: Config) -> Config:
        """Give the arm's config with this cell's seed and folder."""
        cfg = copy.deepcopy(cfg)
        cfg.randomness = {**(cfg.get('randomness') or {}), 'seed': self.seed}
        cfg.work_dir = str(self.folder.absolute())
        return cfg


@dataclass
class CellResult:
    """What came out of a cell.

    Attributes:
        arm: Name of the arm.
        seed: Its seed.
        unit: What the curve counts in: ``'epoch'`` or ``'iteration'``.
        iterations: How many training iterations there were.
        train_seconds: What these took together, data loading included, validation not.
        peak_memory: In MiB, see :func:`~.training_cost_hook.peak_memory`.
        device: What it was trained on.
        versions: Of this package and torch.
        metrics: By split (``'val'``, ``'test'``), what the evaluators gave for the last checkpoint.
        curve: AP at each validation in percent, by epoch or iteration.
        step_seconds: The median iteration; None in results of version 0.1.
    """

    arm: str
    seed: int
    unit: str
    iterations: int
    train_seconds: float
    peak_memory: float
    device: str
    versions: dict[str, str]
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    curve: list[tuple[int, float]] = field(default_factory=list)
    step_seconds: float | None = None

    def write(self, path: Path) -> None:
        """Write it to a file, whole or not at all, a line for each field."""
        lines = [f'"{name}": {json.dumps(value)}' for name, value in asdict(self).items()]
        text = '{\n' + ',\n'.join(lines) + '\n}\n'
        AtomicLocalBackend().put_text(text, str(path))

    @classmethod
    def read(cls, path: Path) -> 'CellResult':
        """Read it back.

        Raises:
            ConfigError: if the file is no result.
        """
        try:
            return cls(**json.loads(path.read_text(encoding='utf-8')))
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f'{path} is no result of compare ({error}); remove it to have the cell trained again'
            ) from error

    @property
    def median_seconds(self) -> float | None:
        """The training time by the median iteration, which pauses hardly change."""
        return None if self.step_seconds is None else self.step_seconds * self.iterations

    def ap(self, split: str) -> dict[str, float]:
        """Give AP, AP50 … of a split in percent; empty if it was not evaluated."""
        return standard_metrics(self.metrics.get(split, {}))


def read_results(
    folder: Path, arms: Iterable[str] | None = None
) -> dict[str, dict[int, CellResult]]:
    """Read the results that there are, by arm and seed, the arms in the order given.

    Args:
        folder: Folder of the results.
        arms: Which arms; all that have results, the baseline first, if None.
    """
    found = sorted({path.parent.name for path in folder.glob('*/seed_*.json')}, key=_arm_order)
    results = {}
    for arm in found if arms is None else arms:
        cells = [CellResult.read(path) for path in (folder / arm).glob('seed_*.json')]
        if cells:
            results[arm] = {cell.seed: cell for cell in sorted(cells, key=lambda x: x.seed)}
    return results


def _arm_order(name: str) -> tuple:
    """Sort arms: baselines first, and the values of a sweep as numbers."""
    start, _, value = name.rpartition('=')
    try:
        number = float(value)
    except ValueError:
        start, number = name, 0.0
    return not name.startswith('baseline'), start, number


def comparable_config(cfg: Config) -> Config:
    """Give a config what all cells have in common.

    They can be resumed to where they were, keep their last checkpoint alone, log metrics by the unit
    they are counted in and AP by class, and note time and memory. What the model is and how it is
    trained stays.

    Raises:
        ConfigError: if the config has no validation.
    """
    cfg = copy.deepcopy(cfg)
    cfg.pop('work_dir', None)
    for key in ('val_dataloader', 'val_evaluator', 'train_dataloader', 'train_cfg'):
        if not cfg.get(key):
            raise ConfigError(f'{key} of the config is {cfg.get(key)!r}, and compare needs one')
    cfg.default_hooks = _hooks(cfg.get('default_hooks') or {}, length(cfg)[0] == 'epoch')
    for split in ('val', 'test'):
        for _, evaluator in evaluator_configs(cfg, f'{split}_evaluator'):
            metric = (
                METRICS.get(evaluator.type) if isinstance(evaluator.type, str) else evaluator.type
            )
            if isinstance(metric, type) and issubclass(metric, CocoMetric):
                evaluator.classwise = True
    backends = (cfg.get('visualizer') or {}).get('vis_backends') or []
    if cfg.get('visualizer') and not any(x['type'] == 'LocalVisBackend' for x in backends):
        cfg.visualizer.vis_backends = [*backends, dict(type='LocalVisBackend')]
    given = cfg.get('custom_imports') or {}
    imports = given.get('imports') or []
    imports = [imports] if isinstance(imports, str) else list(imports)
    cfg.custom_imports = {
        'allow_failed_imports': False,
        **given,
        'imports': list(dict.fromkeys([*imports, *IMPORTS])),
    }
    return cfg


def _hooks(given: dict[str, Any], by_epoch: bool) -> dict[str, Any]:
    hooks = {
        name: dict(hook)
        for name, hook in given.items()
        if hook and hook.get('type') != 'ExportStudentHook'  # compare has its own use of them
    }
    hooks.setdefault('logger', {'type': 'LoggerHook'})['log_metric_by_epoch'] = by_epoch
    hooks['timer'] = {'type': 'TrainingCostHook'}
    if not any(hook.get('type') == 'RandomStateHook' for hook in hooks.values()):
        hooks['random_state'] = {'type': 'RandomStateHook'}
    checkpoint = hooks.setdefault('checkpoint', {})
    if checkpoint.get('type') in CHECKPOINT_HOOKS:
        checkpoint['type'] = 'SafeCheckpointHook'
    checkpoint.update(save_last=True, max_keep_ckpts=1)
    checkpoint.pop('save_best', None)
    return hooks


def keep_arm_config(results: Path, arm: str, cfg: Config) -> None:
    """Write an arm's config beside its results, or make sure that it is the one they came from.

    Raises:
        ConfigError: if an arm that has results was trained with another config.
    """
    path = results / arm / 'config.py'
    done = sorted(path.parent.glob('seed_*.json'))
    tested = any('test' in CellResult.read(x).metrics for x in done)
    if done and (changed := changes_since(path, cfg, tested)):
        raise ConfigError(
            f'{done[0]} came from another config of arm {arm}: {changed} ({path} is the old one). '
            f'Give another --work-dir or --results, or remove {path.parent} to train the arm anew'
        )
    AtomicLocalBackend().put_text(cfg.pretty_text, str(path))


def check_started(cell: Cell, cfg: Config) -> None:
    """Make sure that a cell that was begun goes on with the same config.

    Raises:
        ConfigError: if it was begun with another.
    """
    if cell.checkpoint and (changed := changes_since(cell.config_file, cell.config(cfg), False)):
        raise ConfigError(
            f'{cell} was begun with another config: {changed}. Give another --work-dir, or remove '
            f'{cell.folder} to train it anew'
        )


def changes_since(path: Path, cfg: Config, tested: bool) -> str:
    """Say in which keys a config differs from the one written to a file; empty if in none.

    Args:
        path: The file; if there is none, nothing differs.
        cfg: The config.
        tested: Whether the data to test on counts too.
    """
    if not path.is_file() or path.read_text(encoding='utf-8') == cfg.pretty_text:
        return ''
    old = Config.fromfile(path, import_custom_modules=False)
    changed = [
        key
        for key in _changed_keys(old.to_dict(), Config.fromstring(cfg.pretty_text, '.py').to_dict())
        if tested or key.partition('.')[0] not in TEST_KEYS
    ]
    return ', '.join(changed[:5]) + ', …' * (len(changed) > 5)


def _changed_keys(old: Any, new: Any, key: str = '') -> Iterator[str]:
    """Name the dotted keys in which two configs differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys([*old, *new]):
            yield from _changed_keys(old.get(name), new.get(name), f'{key}.{name}'.lstrip('.'))
    elif old != new:
        yield key


def check_metrics(cell: Cell, metrics: dict[str, float]) -> None:
    """Make sure that there is an AP among a cell's metrics.

    Raises:
        ConfigError: if there is none.
    """
    if main_metric(metrics) is None:
        raise ConfigError(
            f'{cell}: no AP among the metrics {", ".join(metrics)}; accepted: an evaluator like '
            'CocoMetric that gives bbox_mAP'
        )
