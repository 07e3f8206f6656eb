"""The runs of a comparison (an arm trained with a seed), with their configs and folders."""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS
from mmengine.config import Config

from ...checks.settings import coco_metrics
from ...config_tree import class_of, with_imports
from ...datasets import evaluator_configs
from ...errors import ConfigError
from .results import ResultsFolder, RunResult, plain_config
from .schedule import length

IMPORTS = ('mmdet_sssd', 'mmdet_sssd.commands.comparison.training_cost_hook')
CHECKPOINT_HOOKS = (None, 'CheckpointHook', 'SafeCheckpointHook')
TEST_KEYS = ('test_dataloader', 'test_evaluator', 'test_cfg')


@dataclass(frozen=True)
class Run:
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
        """The output of the run's processes."""
        return self.folder / 'output.log'

    @property
    def result(self) -> RunResult | None:
        """The result, if the run is finished."""
        return self.results.arm(self.arm).runs.get(self.seed)

    @property
    def checkpoint(self) -> Path | None:
        """The last checkpoint, if there is one."""
        name = self.folder / 'last_checkpoint'
        path = self.folder / Path(name.read_text(encoding='utf-8')).name if name.is_file() else None
        return path if path and path.is_file() else None

    @property
    def finished(self) -> Path:
        """A file that is there once the run has a result, wherever that is kept."""
        return self.folder / 'finished'

    @property
    def config_file(self) -> Path:
        """The config to train with; mmengine writes its resolved copy into the folder."""
        return self.folder.with_suffix('.py')

    def config(self, cfg: Config) -> Config:
        """Make the run's config from the arm's."""
        cfg = copy.deepcopy(cfg)
        cfg.randomness = {**(cfg.get('randomness') or {}), 'seed': self.seed}
        cfg.work_dir = str(self.folder.absolute())
        return cfg


def comparable_config(cfg: Config) -> Config:
    """Add to a config what all runs share; model and training stay the same.

    Runs can be preempted and resumed exactly, keep only their last checkpoint, log metrics per epoch
    or iteration, whichever the loop counts, evaluate AP by class, and record time and memory.

    Raises:
        ConfigError: if the config has no training, no validation, or none that gives the AP of boxes.
    """
    cfg = copy.deepcopy(cfg)
    cfg.pop('work_dir', None)
    for key in ('val_dataloader', 'val_evaluator', 'train_dataloader', 'train_cfg'):
        if not cfg.get(key):
            raise ConfigError(f'{key} is {cfg.get(key)!r}; compare needs training and validation')
    cfg.default_hooks = _hooks(cfg.get('default_hooks') or {}, length(cfg)[0] == 'epoch')
    kinds = [coco_metrics(x) for _, x in evaluator_configs(cfg, 'val_evaluator')]
    if all(kinds) and not any('bbox' in x for x in kinds):  # others' AP is not known here
        raise ConfigError(f'val_evaluator.metric is {kinds[0]}; compare needs bbox among them')
    for split in ('val', 'test'):
        for _, evaluator in evaluator_configs(cfg, f'{split}_evaluator'):
            metric = class_of(evaluator, METRICS)
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
    types = {hook.get('type') for hook in hooks.values()}
    hooks.setdefault('logger', {'type': 'LoggerHook'})['log_metric_by_epoch'] = by_epoch
    hooks['timer'] = {'type': 'TrainingCostHook'}
    if 'RandomStateHook' not in types:
        hooks['random_state'] = {'type': 'RandomStateHook'}
    checkpoint = hooks.setdefault('checkpoint', {})
    if checkpoint.get('type') in CHECKPOINT_HOOKS:
        checkpoint['type'] = 'SafeCheckpointHook'
        if 'PreemptionHook' not in types:
            hooks['preemption'] = {'type': 'PreemptionHook'}
    checkpoint.update(save_last=True, max_keep_ckpts=1)
    for key in ('save_best', 'out_dir', 'filename_tmpl'):  # they are looked for in the run's folder
        checkpoint.pop(key, None)
    return hooks


def check_known(results: ResultsFolder, arm: str, cfg: Config) -> None:
    """Check that an arm's results, if there are any, are of its config.

    Raises:
        ConfigError: if they are of another one.
    """
    known = results.arm(arm)
    if known.runs and known.config is not None:
        tested = any('test' in run.metrics for run in known.runs.values())
        if changed := _changes(known.config, cfg, () if tested else TEST_KEYS):
            raise ConfigError(
                f'{results.file} has results of arm {arm} from another config; it differs in '
                f"{changed}. Use another --work-dir or --results, or remove the arm's seeds from it"
            )


def keep_config(results: ResultsFolder, arm: str, cfg: Config, runs: Iterable[Run]) -> None:
    """Keep an arm's config with its results, after checking that its runs are of the same one.

    Raises:
        ConfigError: if results, or runs that were begun, are of another config, or a finished run has
            no result here, whose checkpoint would be taken for a new one's.
    """
    check_known(results, arm, cfg)
    for run in runs:
        if run.checkpoint and run.config_file.is_file():
            started = Config.fromfile(run.config_file, import_custom_modules=False)
            ignored = (*TEST_KEYS, 'work_dir')  # the folder may have been moved
            if changed := _changes(plain_config(started), run.config(cfg), ignored):
                raise ConfigError(
                    f'{run} was started with another config; it differs in {changed}. Use another '
                    f'--work-dir, or remove {run.folder} to train the run again'
                )
        if run.checkpoint and run.finished.is_file() and run.result is None:
            raise ConfigError(
                f'{run} was trained before, but its result is not in {results.file}. Use another '
                f'--work-dir, or remove {run.folder} to train the run again'
            )
    results.add(configs={arm: cfg})


def _changes(old: dict[str, Any], cfg: Config, ignored: Iterable[str]) -> str:
    """List the keys in which a config differs from another."""
    keys = _changed_keys(old, plain_config(cfg))
    changed = [key for key in keys if key.partition('.')[0] not in ignored]
    return ', '.join(changed[:5]) + ', …' * (len(changed) > 5)


def _changed_keys(old: Any, new: Any, key: str = '') -> Iterator[str]:
    """List the dotted keys in which two configs differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys([*old, *new]):
            yield from _changed_keys(old.get(name), new.get(name), f'{key}.{name}'.lstrip('.'))
    elif old != new:
        yield key
