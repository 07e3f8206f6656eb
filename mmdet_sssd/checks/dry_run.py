"""Rehearses a training run up to and including its first iteration."""

import copy
import io
import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from logging import LogRecord
from typing import Any
from unittest.mock import patch

import torch
from mmdet.evaluation import CocoMetric
from mmdet.structures import SampleList
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.hooks.hook import DATA_BATCH
from mmengine.logging import MMLogger
from mmengine.runner import IterBasedTrainLoop, Runner

from ..datasets import leaf_datasets
from ..errors import ConfigError, user_error
from ..hooks.model_parts import bare_model, find_detector
from ..models import Distiller
from ..runs import PreemptionHook, find_checkpoint_to_resume
from ..state_dicts import misfit
from .checkpoints import detector_weights
from .images import check_image_files
from .labels import CheckDatasetHook, check_data_sets

SHOWN_CLASSES = 10
NEEDS_WORKERS = ('prefetch_factor', 'timeout', 'multiprocessing_context')


def rehearse(cfg: Config, build: Callable[[Config], Runner]) -> None:
    """Train one iteration, validate one batch, and print warnings and a summary.

    It uses mmengine's runner with all hooks, so a config that passes will also start to train. The
    runner gets a temporary work directory, no visualisation backends, and loaders without worker
    processes, whose errors would be harder to read. What other packages print is left out.

    Raises:
        ConfigError: if anything fails; the message names the stage.
    """
    rehearsal = RehearsalHook()
    with warnings_listed() as warnings, tempfile.TemporaryDirectory() as work_dir:
        try:
            with redirect_stdout(io.StringIO()):
                runner = build(rehearsed_config(cfg, work_dir))
                runner.register_hook(rehearsal, 'HIGHEST')
                # It would finish a validation before it stops, and a rehearsal saves nothing.
                runner._hooks = [x for x in runner.hooks if not isinstance(x, PreemptionHook)]
                with suppress(_IterationDone):
                    runner.train()
                rehearsal.validate(runner)
        except Exception as error:
            if user_error(error):
                raise
            first_line = next(iter(str(error).splitlines()), '')
            raise ConfigError(
                f'{rehearsal.stage} failed ({type(error).__name__}: {first_line}); --debug shows where'
            ) from error
        finally:
            warnings = dict.fromkeys(warnings)
            print(''.join(f'warning: {message}\n' for message in warnings), end='')
        if is_main_process():
            print(summary(runner, rehearsal.rows, len(warnings)))


def rehearsed_config(cfg: Config, work_dir: str) -> Config:
    """Copy a config and make its run write to ``work_dir`` only."""
    cfg = copy.deepcopy(cfg)
    if cfg.get('resume') and not cfg.get('load_from'):
        by_epoch = cfg.get('default_hooks', {}).get('checkpoint', {}).get('by_epoch', True)
        template = 'epoch_{}.pth' if by_epoch else 'iter_{}.pth'
        found = find_checkpoint_to_resume(cfg.work_dir, cfg.work_dir, template)
        cfg.load_from = found or cfg.get('load_from_at_start')
        cfg.resume = found is not None
    cfg.work_dir = work_dir
    cfg.log_level = 'WARNING'
    if cfg.get('visualizer'):
        cfg.visualizer.vis_backends = []
    for stage in ('train', 'val', 'test'):
        if loader := cfg.get(f'{stage}_dataloader'):
            loader.update(num_workers=0, persistent_workers=False)
            for key in NEEDS_WORKERS:
                loader.pop(key, None)
    return cfg


class _IterationDone(Exception):
    """Leaves mmengine's training loop after the first iteration."""


class RehearsalHook(Hook):
    """Watches the first iteration of a run and ends the run after it.

    Attributes:
        stage: The current stage, for errors.
        rows: What it saw, for the summary.
    """

    def __init__(self) -> None:
        self.stage = 'building model and data'
        self.rows: dict[str, str] = {}

    def before_run(self, runner: Runner) -> None:
        """Note that weights come next: ``init_cfg``, then ``load_from`` or the checkpoint."""
        self.stage = 'loading the weights'

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Note how many of the detector's weights are in a checkpoint."""
        own, loaded = find_detector(runner).state_dict(), detector_weights(runner, checkpoint)
        fit = sum(key in loaded and loaded[key].shape == x.shape for key, x in own.items())
        found = [f'{fit} of {len(own)} from {runner._load_from}', misfit(own, loaded)]
        self.rows['weights'] = ': '.join(filter(None, found))

    def before_train(self, runner: Runner) -> None:
        """Check labels, unless a hook of the run does, and image files."""
        self.stage = 'checking the data'
        if not any(isinstance(hook, CheckDatasetHook) for hook in runner.hooks):
            check_data_sets(runner)
        for loop in filter(None, (runner.train_loop, runner.val_loop)):
            check_image_files(leaf_datasets(loop.dataloader.dataset))
        self.stage = 'reading a training batch'
        if isinstance(runner.train_loop, IterBasedTrainLoop):
            runner.train_loop._iter = 0  # a resumed loop would read all batches that it skips

    def before_train_iter(self, runner: Runner, **_: Any) -> None:
        """Start the clock."""
        self.stage = 'the training step'
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.started = time.perf_counter()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DATA_BATCH, outputs: dict[str, Any]
    ) -> None:
        """Check losses and updated parameters, and leave the training loop.

        Raises:
            ConfigError: if one is not finite.
        """
        losses = {name: torch.as_tensor(x).item() for name, x in outputs.items()}
        seconds, samples = time.perf_counter() - self.started, _samples(data_batch)
        bad = [f'{name} is {x}' for name, x in losses.items() if not math.isfinite(x)]
        bad += [
            f'the gradient of {name} is not finite'
            for name, x in bare_model(runner).named_parameters()
            if not x.isfinite().all()  # after the optimizer's step
        ]
        if bad:
            images = ', '.join(str(sample.metainfo.get('img_path')) for sample in samples)
            more = f' (and {len(bad) - 3} more)' if len(bad) > 3 else ''
            raise ConfigError(
                f'in the first training step, {"; ".join(bad[:3])}{more}. Check the boxes of its '
                f'images ({images}) and the weights that the model starts from'
            )
        self.rows['losses'] = ', '.join(f'{k} {x:.4g}' for k, x in losses.items() if 'loss' in k)
        self.rows['first step'] = f'{seconds:.2f} s for {len(samples)} images'
        if torch.cuda.is_available():
            memory = torch.cuda.max_memory_allocated() / 2**30
            self.rows['first step'] += f'; peak memory {memory:.1f} GiB'
        raise _IterationDone

    def validate(self, runner: Runner) -> None:
        """Predict one validation batch and pass it to the evaluator.

        Raises:
            ConfigError: if the run had no iteration left.
        """
        if 'losses' not in self.rows:
            raise ConfigError(
                f'the checkpoint to resume, at epoch {runner.epoch} and iteration {runner.iter}, is '
                'at the end of the run; train_cfg sets its length'
            )
        self.stage = 'the validation batch'
        if runner.val_loop is not None:
            runner.model.eval()
            runner.val_loop.run_iter(0, next(iter(runner.val_loop.dataloader)))

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: DATA_BATCH, outputs: Sequence
    ) -> None:
        """Count the predictions.

        Raises:
            ConfigError: if masks are evaluated, but not predicted.
        """
        predictions = [x.get('pred_instances', ()) for x in outputs]
        self.rows['validation'] = f'{sum(map(len, predictions))} predictions in a batch'
        for metric in runner.val_loop.evaluator.metrics:
            wants_masks = isinstance(metric, CocoMetric) and 'segm' in metric.metrics
            if wants_masks and not all('masks' in x for x in predictions):
                raise ConfigError(
                    "val_evaluator.metric has 'segm', but the detector predicts no masks; accepted: "
                    'bbox'
                )


@contextmanager
def warnings_listed() -> Iterator[list[str]]:
    """List, instead of logging, what any of mmengine's loggers warns of meanwhile."""
    listed: list[str] = []

    def list_warning(_: MMLogger, record: LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            listed.append(record.getMessage())

    with patch.object(MMLogger, 'callHandlers', list_warning):
        yield listed


def summary(runner: Runner, rows: Mapping[str, str], num_warnings: int) -> str:
    """Summarise a rehearsed run and its first step in a few lines."""
    model, train = bare_model(runner), runner.train_dataloader.dataset
    names = dict.fromkeys(type(x).__name__ for x in (model, find_detector(runner)))
    parts = {'': model}
    if isinstance(model, Distiller):
        parts = {'student': model.student}
        parts |= {f'teacher {k}' if k != 'teacher' else k: x for k, x in model.teachers.items()}
        parts |= {f'term {name}': x for name, x in model.terms.items()}
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    classes = train.metainfo.get('classes') or ()
    shown = [*classes[:SHOWN_CLASSES], *['…'] * (len(classes) > SHOWN_CLASSES)]
    images = [f'{len(train)} to train on']
    if runner.val_loop:
        images.append(f'{len(runner.val_loop.dataloader.dataset)} to validate on')
    rows = {
        'model': ' around '.join(names),
        'parameters': ', '.join(f'{k} {x / 1e6:.1f} M'.strip() for k, x in counts.items() if x),
        'classes': f'{len(classes)}: {", ".join(shown)}',
        'images': ', '.join(images),
        **rows,
    }
    plural = 's' * (num_warnings > 1)
    noted = f', with {num_warnings} warning{plural} (above)' if num_warnings else ''
    lines = [f'dry run: this config trains{noted}', *(f'  {k:<12}{x}' for k, x in rows.items())]
    return '\n'.join(lines)


def _samples(data_batch: dict) -> SampleList:
    """List a batch's data samples, those of all branches of a semi-supervised one."""
    samples = data_batch['data_samples']
    branches = samples.values() if isinstance(samples, dict) else [samples]
    return [sample for branch in branches for sample in branch if sample is not None]
