"""What a job of a comparison does: rehearse, or train and evaluate a run."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config

from ...errors import ConfigError
from ...runs import AtomicLocalBackend
from ...version import __version__
from ..locks import locked
from .metrics import main_metric, read_validations
from .programs import run_program
from .results import RunResult
from .runs import Run
from .schedule import length

TOOLS = Path(__file__).parents[2] / '.mim/tools'
VERSIONS = {'mmdet_sssd': __version__, 'torch': torch.__version__}
NO_METRICS = ('step', 'epoch', 'iter', 'time', 'data_time')  # logged beside the metrics


@dataclass(frozen=True)
class Training:
    """How runs are trained.

    Attributes:
        test: Whether to evaluate the last checkpoints on the test data too.
        keep_checkpoints: Whether the last checkpoint of a finished run stays.
        tools: Folder of ``train.py`` and ``test.py``.
    """

    test: bool = False
    keep_checkpoints: bool = True
    tools: Path = TOOLS

    def is_done(self, run: Run) -> bool:
        """Tell whether a run has all the results that are asked for."""
        result = run.result
        return result is not None and (not self.test or 'test' in result.metrics)

    def train(self, run: Run, cfg: Config) -> None:
        """Train and evaluate a run with its arm's config, as far as that is not done.

        Raises:
            ConfigError: if that fails, or another process trains the run.
            Preempted: if it is to go on later.
        """
        result = run.result
        if result is None:
            result = self._train(run, cfg)
            run.results.add(result)
            run.finished.touch()
        with locked(run.folder / 'test.lock', needed=False):  # another comparison may do it
            result = run.result
            if self.test and 'test' not in result.metrics:
                result.metrics['test'] = self._evaluate(run, cfg, 'test')
                run.results.add(result)
        if not self.keep_checkpoints:
            for path in (*run.folder.glob('*.pth'), run.folder / 'last_checkpoint'):
                path.unlink(missing_ok=True)

    def rehearse(self, run: Run, cfg: Config) -> None:
        """Rehearse a run.

        Raises:
            ConfigError: if it could not be trained; the message is the rehearsal's.
        """
        self._run_training(run, cfg, '--dry-run')

    def _train(self, run: Run, cfg: Config) -> RunResult:
        self._run_training(run, cfg, *(['--resume'] if any(run.folder.glob('*.pth')) else []))
        unit, count = length(cfg)
        validations = read_validations(run.folder)
        metrics = validations.get(count) or self._evaluate(run, cfg, 'val')
        main = _check_metrics(metrics)
        return RunResult(
            arm=run.arm,
            seed=run.seed,
            unit=unit,
            **read_notes(run.checkpoint),
            versions=VERSIONS,
            metrics={'val': _numbers(metrics)},
            curve=[(step, round(100 * row[main], 3)) for step, row in sorted(validations.items())],
        )

    def _evaluate(self, run: Run, cfg: Config, split: str) -> dict[str, float]:
        """Evaluate the last checkpoint of a run with stock mmdet's test."""
        if run.checkpoint is None:
            raise ConfigError(
                f'there is no checkpoint in {run.folder} to evaluate on the {split} data. If the run '
                'ended early, give default_hooks.checkpoint a smaller interval; if it was removed, '
                f'remove its seed from {run.results.file} too, to train it again'
            )
        cfg = run.config(cfg)
        if split == 'val':  # by mmengine's test loop, which writes the metrics to a file
            cfg.test_cfg = dict(type='TestLoop', fp16=cfg.val_cfg.get('fp16', False))
            cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, cfg.val_evaluator
        config, folder = run.folder / f'{split}.py', run.folder / split
        AtomicLocalBackend().put_text(cfg.pretty_text, str(config))
        shutil.rmtree(folder, ignore_errors=True)
        self._program('test', run, config, run.checkpoint, '--work-dir', folder)
        path = next(folder.glob('*/*.json'), None)
        metrics = json.loads(path.read_text(encoding='utf-8')) if path else {}
        if metrics.keys() <= {*NO_METRICS}:
            raise ConfigError(
                f'its last checkpoint finds nothing on the {split} data, which gives no metrics; train '
                'it longer, or lower the least score in its test_cfg'
            )
        _check_metrics(metrics)
        return _numbers(metrics)

    def _run_training(self, run: Run, cfg: Config, *flags: str) -> None:
        """Run ``train.py``."""
        AtomicLocalBackend().put_text(run.config(cfg).pretty_text, str(run.config_file))
        self._program('train', run, run.config_file, '--work-dir', run.folder, *flags)

    def _program(self, name: str, run: Run, *args: Any) -> None:
        run_program(name, [self.tools / f'{name}.py', *args], run.log)


def read_notes(checkpoint: Path) -> dict[str, Any]:
    """Read from a checkpoint what :class:`TrainingCostHook` and ``DistillPhasesHook`` noted.

    Returns:
        The fields of :class:`~.results.RunResult` ``iterations``, ``train_seconds``,
        ``step_seconds``, ``peak_memory``, ``device`` and ``teacher_leads``.
    """
    content = torch.load(checkpoint, map_location='cpu', weights_only=False, mmap=True)
    scalars, info = (content['message_hub'][x] for x in ('log_scalars', 'runtime_info'))
    times = scalars['train/time'].data[0]
    return {
        'device': info['device'],
        'teacher_leads': info.get('teacher_leads'),
        'iterations': content['meta']['iter'],
        'train_seconds': round(float(times.sum()), 3),
        'step_seconds': round(float(np.median(times)), 6),
        'peak_memory': round(float(scalars['train/peak_memory'].data[0].max()), 1),
    }


def _check_metrics(metrics: Mapping[str, Any]) -> str:
    """Find the metric that is the AP."""
    if (main := main_metric(metrics)) is None:
        raise ConfigError(
            f'the metrics {", ".join(metrics)} include no AP; accepted: an evaluator like '
            'CocoMetric, which computes bbox_mAP'
        )
    return main


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {k: v for k, v in metrics.items() if k not in NO_METRICS and isinstance(v, (int, float))}
