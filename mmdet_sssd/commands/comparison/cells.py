"""The cells of a comparison, an arm trained with a seed: their configs and folders."""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS
from mmengine.config import Config

from ...checkpoints import AtomicLocalBackend
from ...datasets import evaluator_configs
from ...errors import ConfigError
from .locks import locked
from .metrics import main_metric
from .results import CellResult, ResultsFolder, plain_config
from .schedule import length

IMPORTS = ('mmdet_sssd', 'mmdet_sssd.commands.comparison.training_cost_hook')
CHECKPOINT_HOOKS = (None, 'CheckpointHook', 'SafeCheckpointHook')
PREEMPTION = 'preemption'  # the default hook by which a cell is preempted; it changes no result
TEST_KEYS = {'test_dataloader', 'test_evaluator', 'test_cfg'}


@dataclass(frozen=True)
class Cell:
    """An arm that is trained with a seed.

    Attributes:
        arm: Name of the arm.
        seed: ``randomness.seed``.
        work_dir: Folder of the comparison, with logs and checkpoints.
        results: The comparison's results, which are all that a report needs.
    """

    arm: str
    seed: int
    work_dir: Path
    results: ResultsFolder

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
        """What is written when the cell is done."""
        return self.results.runs / self.arm / f'seed_{self.seed}.json'

    @property
    def result(self) -> CellResult | None:
        """What came out of it, if it is done."""
        return self.results.cells(self.arm).get(self.seed)

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

    def claimed(self, wait: float = 2) -> AbstractContextManager[bool]:
        """Keep others from training it; they may share the work directory or the results.

        Args:
            wait: For how many seconds to try. Others look whether it is free, which is soon over.
        """
        files = (self.folder.with_suffix('.lock'), self.result_file.with_suffix('.lock'))
        return locked(*files, wait=wait)

    def is_free(self) -> bool:
        """Tell whether nobody trains it."""
        with self.claimed(wait=0) as is_free:
            return is_free

    def config(self, cfg: Config) -> Config:
        """Give the arm's config with this cell's seed and folder."""
        cfg = copy.deepcopy(cfg)
        cfg.randomness = {**(cfg.get('randomness') or {}), 'seed': self.seed}
        cfg.work_dir = str(self.folder.absolute())
        return cfg


def comparable_config(cfg: Config) -> Config:
    """Give a config what all cells have in common.

    They can be preempted and resumed to where they were, keep their last checkpoint alone, log
    metrics by the unit they are counted in and AP by class, and note time and memory. What the model
    is and how it is trained stays.

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
        if not any(hook.get('type') == 'PreemptionHook' for hook in hooks.values()):
            hooks[PREEMPTION] = {'type': 'PreemptionHook'}
    checkpoint.update(save_last=True, max_keep_ckpts=1)
    checkpoint.pop('save_best', None)
    return hooks


def keep_arm_config(results: ResultsFolder, arm: str, cfg: Config) -> None:
    """Write an arm's config down, or make sure that it is the one its results came from.

    Raises:
        ConfigError: if an arm that has results was trained with another config.
    """
    cells = results.cells(arm).values()
    tested = any('test' in cell.metrics for cell in cells)
    if cells and (changed := describe_changes(results.config(arm), cfg, tested)):
        raise ConfigError(
            f'arm {arm} has results in {results.path} that came from another config: {changed}. Give '
            f'another --work-dir or --results, or remove {results.runs / arm}, and {arm} from '
            f'{results.file}, to train the arm anew'
        )
    AtomicLocalBackend().put_text(cfg.pretty_text, str(results.config_file(arm)))


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
    return describe_changes(plain_config(old), cfg, tested)


def describe_changes(old: dict[str, Any] | None, cfg: Config, tested: bool) -> str:
    """Name the keys in which a config differs from another.

    Args:
        old: The other, as :func:`~.results.plain_config` has it; if None, nothing differs.
        cfg: The config.
        tested: Whether the data to test on counts too.
    """
    if old is None:
        return ''
    changed = [
        key
        for key in _changed_keys(old, plain_config(Config.fromstring(cfg.pretty_text, '.py')))
        if (tested or key.partition('.')[0] not in TEST_KEYS)
        and not f'{key}.'.startswith(f'default_hooks.{PREEMPTION}.')
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
