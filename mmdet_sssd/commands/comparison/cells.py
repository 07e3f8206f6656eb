"""The cells of a comparison (an arm trained with a seed), with their configs and folders."""

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
from ...config_tree import with_imports
from ...datasets import evaluator_configs
from ...errors import ConfigError
from ..locks import locked
from .metrics import main_metric
from .results import CellResult, ResultsFolder, plain_config
from .schedule import length

IMPORTS = ('mmdet_sssd', 'mmdet_sssd.commands.comparison.training_cost_hook')
CHECKPOINT_HOOKS = (None, 'CheckpointHook', 'SafeCheckpointHook')
PREEMPTION = 'preemption'  # the default hook by which a cell is preempted; it changes no result
TEST_KEYS = {'test_dataloader', 'test_evaluator', 'test_cfg'}


@dataclass(frozen=True)
class Cell:
    """An arm trained with a seed.

    Attributes:
        arm: Name of the arm.
        seed: ``randomness.seed``.
        work_dir: Folder of the comparison, with logs and checkpoints.
        results: Folder of the comparison's results, all that a report needs.
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
        """The output of the cell's processes."""
        return self.folder / 'output.log'

    @property
    def result_file(self) -> Path:
        """The file of the cell's result."""
        return self.results.runs / self.arm / f'seed_{self.seed}.json'

    @property
    def result(self) -> CellResult | None:
        """The result, if the cell is done."""
        return self.results.cells(self.arm).get(self.seed)

    @property
    def checkpoint(self) -> Path | None:
        """The last checkpoint, if there is one."""
        name = self.folder / 'last_checkpoint'
        path = self.folder / Path(name.read_text(encoding='utf-8')).name if name.is_file() else None
        return path if path and path.is_file() else None

    @property
    def config_file(self) -> Path:
        """The config to train with; mmengine writes its resolved copy into the folder."""
        return self.folder.with_suffix('.py')

    def claimed(self, wait: float = 2) -> AbstractContextManager[bool]:
        """Lock the cell against others that share the work directory or the results.

        Args:
            wait: Seconds to keep trying, as others briefly lock a cell to see whether it is free.
        """
        files = (self.folder.with_suffix('.lock'), self.result_file.with_suffix('.lock'))
        return locked(*files, wait=wait)

    def is_free(self) -> bool:
        """Tell whether nobody trains the cell."""
        with self.claimed(wait=0) as is_free:
            return is_free

    def config(self, cfg: Config) -> Config:
        """Make the cell's config from the arm's."""
        cfg = copy.deepcopy(cfg)
        cfg.randomness = {**(cfg.get('randomness') or {}), 'seed': self.seed}
        cfg.work_dir = str(self.folder.absolute())
        return cfg


def comparable_config(cfg: Config) -> Config:
    """Add to a config what all cells share; model and training stay the same.

    Cells can be preempted and resumed exactly, keep only their last checkpoint, log metrics per epoch
    or iteration, whichever the run counts, evaluate AP by class, and record time and memory.

    Raises:
        ConfigError: if the config has no training or no validation.
    """
    cfg = copy.deepcopy(cfg)
    cfg.pop('work_dir', None)
    for key in ('val_dataloader', 'val_evaluator', 'train_dataloader', 'train_cfg'):
        if not cfg.get(key):
            raise ConfigError(f'{key} is {cfg.get(key)!r}; compare needs training and validation')
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
    cfg.custom_imports = with_imports(cfg, *IMPORTS)
    return cfg


def _hooks(configured: dict[str, Any], by_epoch: bool) -> dict[str, Any]:
    hooks = {
        name: dict(hook)
        for name, hook in configured.items()
        if hook and hook.get('type') != 'ExportStudentHook'  # students are not needed here
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
    """Write an arm's config, after checking that earlier results came from the same one.

    Raises:
        ConfigError: if the arm has results from another config.
    """
    cells = results.cells(arm).values()
    tested = any('test' in cell.metrics for cell in cells)
    if cells and (changed := describe_changes(results.config(arm), cfg, tested)):
        raise ConfigError(
            f'{results.path} has results of arm {arm} from another config; it differs in {changed}. '
            f'Use another --work-dir or --results; or remove {results.runs / arm} and {arm} in '
            f'{results.file} to train the arm again'
        )
    AtomicLocalBackend().put_text(cfg.pretty_text, str(results.config_file(arm)))


def check_started(cell: Cell, cfg: Config) -> None:
    """Check that a cell is resumed with the config it was started with.

    Raises:
        ConfigError: if the configs differ.
    """
    if cell.checkpoint and (changed := changes_since(cell.config_file, cell.config(cfg), False)):
        raise ConfigError(
            f'{cell} was started with another config; it differs in {changed}. Use another '
            f'--work-dir, or remove {cell.folder} to train the cell again'
        )


def changes_since(path: Path, cfg: Config, tested: bool) -> str:
    """List the keys in which a config differs from one in a file; empty if it is the same.

    Args:
        path: The file; if it does not exist, nothing differs.
        cfg: The config.
        tested: Whether test data and evaluator count too.
    """
    if not path.is_file() or path.read_text(encoding='utf-8') == cfg.pretty_text:
        return ''
    old = Config.fromfile(path, import_custom_modules=False)
    return describe_changes(plain_config(old), cfg, tested)


def describe_changes(old: dict[str, Any] | None, cfg: Config, tested: bool) -> str:
    """List the keys in which a config differs from another.

    Args:
        old: The other, as from :func:`~.results.plain_config`; if None, nothing differs.
        cfg: The config.
        tested: Whether test data and evaluator count too.
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
    """List the dotted keys in which two configs differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys([*old, *new]):
            yield from _changed_keys(old.get(name), new.get(name), f'{key}.{name}'.lstrip('.'))
    elif old != new:
        yield key


def check_metrics(cell: Cell, metrics: dict[str, float]) -> None:
    """Check that a cell's metrics include an AP.

    Raises:
        ConfigError: if they do not.
    """
    if main_metric(metrics) is None:
        raise ConfigError(
            f'{cell}: the metrics {", ".join(metrics)} include no AP; accepted: an evaluator like '
            'CocoMetric, which computes bbox_mAP'
        )
