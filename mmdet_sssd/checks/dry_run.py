"""Rehearses a training run up to and including its first iteration."""

import copy
import io
import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from logging import LogRecord
from typing import Any
from unittest.mock import patch

import torch
from mmdet.evaluation import CocoMetric
from mmdet.models import BaseDetector
from mmdet.structures import SampleList
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.hooks.hook import DATA_BATCH
from mmengine.logging import MMLogger
from mmengine.optim import AmpOptimWrapper
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import Tensor, nn

from ..datasets import leaf_datasets
from ..errors import ConfigError, user_error
from ..hooks.model_parts import bare_model, find_detector
from ..models import Distiller
from ..runs import PreemptionHook, find_checkpoint_to_resume
from .checkpoints import detector_weights, misfit
from .images import check_image_files
from .labels import CheckDatasetHook, check_data_sets

SHOWN_CLASSES = 10
NEEDS_WORKERS = ('prefetch_factor', 'timeout', 'multiprocessing_context')


def rehearse(cfg: Config, build: Callable[[Config], Runner]) -> None:
    """Train one iteration, validate one batch, and print warnings and a summary.

    It uses mmengine's runner with all hooks, so a config that passes will also start to train. The
    runner gets a temporary work directory, no visualisation backends, and loaders without worker
    processes, whose errors would be harder to read. What other packages print is left out.

    Args:
        cfg: The whole config; not changed.
        build: Builds a runner from a config.

    Raises:
        ConfigError: if anything fails; the message names the stage.
    """
    rehearsal = RehearsalHook()
    with warnings_listed(shown=False) as warnings, tempfile.TemporaryDirectory() as work_dir:
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
            for message in dict.fromkeys(warnings):
                print(f'warning: {message}')
        if is_main_process():
            print(summary(runner, rehearsal, warnings))


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
        seconds: Duration of the training step.
        batch_size: Images in the step.
        losses: Its logged values, by name.
        bad_gradients: Names of the parameters whose gradient is not finite.
        num_predictions: Objects found in the validation batch; None without validation.
        weights: What was loaded from a checkpoint; empty without one.
    """

    def __init__(self) -> None:
        self.stage = 'building model and data'
        self.seconds = 0.0
        self.batch_size = 0
        self.losses: dict[str, float] = {}
        self.bad_gradients: list[str] = []
        self.num_predictions: int | None = None
        self.weights = ''

    def before_run(self, runner: Runner) -> None:
        """Note that weights come next: ``init_cfg``, then ``load_from`` or the checkpoint."""
        self.stage = 'loading the weights'

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Note how many of the detector's weights are in a checkpoint."""
        own, loaded = find_detector(runner).state_dict(), detector_weights(runner, checkpoint)
        fit = [key for key, x in own.items() if key in loaded and loaded[key].shape == x.shape]
        problem = misfit(own, loaded)
        self.weights = f'{len(fit)} of {len(own)} from {runner._load_from}' + (
            problem and f': {problem}'
        )

    def before_train(self, runner: Runner) -> None:
        """Check labels, unless a hook of the run does, and image files, and watch the gradients."""
        self.stage = 'checking the data'
        if not any(isinstance(hook, CheckDatasetHook) for hook in runner.hooks):
            check_data_sets(runner)
        loaders = [runner.train_dataloader, getattr(runner.val_loop, 'dataloader', None)]
        check_image_files(x for loader in loaders if loader for x in leaf_datasets(loader.dataset))
        self.stage = 'reading a training batch'
        if isinstance(runner.train_loop, IterBasedTrainLoop):
            runner.train_loop._iter = 0  # a resumed loop would read all batches that it skips
        # AMP's loss scaler handles infinite gradients.
        if not isinstance(runner.optim_wrapper, AmpOptimWrapper):
            self._watch_gradients(runner)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DATA_BATCH = None
    ) -> None:
        """Start the clock."""
        self.stage = 'the training step'
        self.batch_size = len(_samples(data_batch))
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.started = time.perf_counter()

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: DATA_BATCH = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Check losses and gradients, and leave the training loop.

        Raises:
            ConfigError: if one is not finite.
        """
        self.losses = {name: torch.as_tensor(x).item() for name, x in outputs.items()}
        self.seconds = time.perf_counter() - self.started
        bad = [f'{name} is {x}' for name, x in self.losses.items() if not math.isfinite(x)]
        bad += [f'the gradient of {name} is not finite' for name in self.bad_gradients]
        if bad:
            images = [str(sample.metainfo.get('img_path')) for sample in _samples(data_batch)]
            more = f' (and {len(bad) - 3} more)' if len(bad) > 3 else ''
            raise ConfigError(
                f'in the first training step, {"; ".join(bad[:3])}{more}. Check the boxes of its '
                f'images ({", ".join(images)}) and the weights that the model starts from'
            )
        raise _IterationDone

    def validate(self, runner: Runner) -> None:
        """Predict one validation batch and pass it to the evaluator.

        Raises:
            ConfigError: if the run had no iteration left.
        """
        if not self.losses:
            raise ConfigError(
                f'the checkpoint to resume, at epoch {runner.epoch} and iteration {runner.iter}, is '
                'at the end of the run; train_cfg sets its length'
            )
        self.stage = 'the validation batch'
        if runner.val_loop is not None:
            runner.model.eval()
            runner.val_loop.run_iter(0, next(iter(runner.val_loop.dataloader)))

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: DATA_BATCH = None,
        outputs: Sequence | None = None,
    ) -> None:
        """Count the predictions.

        Raises:
            ConfigError: if masks are evaluated, but not predicted.
        """
        predictions = [x.get('pred_instances', ()) for x in outputs]
        self.num_predictions = sum(map(len, predictions))
        for metric in runner.val_loop.evaluator.metrics:
            wants_masks = isinstance(metric, CocoMetric) and 'segm' in metric.metrics
            if wants_masks and not all('masks' in x for x in predictions):
                raise ConfigError(
                    "val_evaluator.metric has 'segm', but the detector predicts no masks; accepted: "
                    'bbox'
                )

    def _watch_gradients(self, runner: Runner) -> None:
        """Check the gradients between the backward pass and the optimizer's step."""
        backward = runner.optim_wrapper.backward

        def watched_backward(loss: Tensor, **kwargs: Any) -> None:
            backward(loss, **kwargs)
            self.bad_gradients = [
                name
                for name, parameter in runner.model.named_parameters()
                if parameter.grad is not None and not parameter.grad.isfinite().all()
            ]

        runner.optim_wrapper.backward = watched_backward


@contextmanager
def warnings_listed(shown: bool = True) -> Iterator[list[str]]:
    """List what is logged as a warning or an error meanwhile, by any of mmengine's loggers.

    Args:
        shown: Whether it is logged, too.
    """
    listed: list[str] = []
    log = MMLogger.callHandlers

    def log_and_list(self: MMLogger, record: LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            listed.append(record.getMessage())
        if shown:
            log(self, record)

    with patch.object(MMLogger, 'callHandlers', log_and_list):
        yield listed


def summary(runner: Runner, rehearsal: RehearsalHook, warnings: Sequence[str]) -> str:
    """Summarise a rehearsed run and its first step in a few lines."""
    train, val = runner.train_dataloader.dataset, getattr(runner.val_loop, 'dataloader', None)
    classes = train.metainfo.get('classes') or ()
    more = ' …' if len(classes) > SHOWN_CLASSES else ''
    rows = {
        'model': ' around '.join(
            dict.fromkeys((_name(bare_model(runner)), _name(find_detector(runner))))
        ),
        'parameters': _parameters(bare_model(runner)),
        'classes': f'{len(classes)}: {", ".join(classes[:SHOWN_CLASSES])}{more}',
        'images': f'{len(train)} to train on'
        + (f', {len(val.dataset)} to validate on' if val else ''),
        'losses': ', '.join(f'{k} {x:.4g}' for k, x in rehearsal.losses.items() if 'loss' in k),
        'weights': rehearsal.weights,
        'first step': f'{rehearsal.seconds:.2f} s for {rehearsal.batch_size} images'
        + _peak_memory(),
    }
    if rehearsal.num_predictions is not None:
        rows['validation'] = f'{rehearsal.num_predictions} predictions in a batch'
    lines = [f'  {name:<12}{row}' for name, row in rows.items() if row]
    noted = {0: '', 1: ', with a warning (above)'}.get(
        len(warnings), f', with {len(warnings)} warnings (above)'
    )
    return '\n'.join([f'dry run: this config trains{noted}', *lines])


def _samples(data_batch: dict) -> SampleList:
    """List a batch's data samples, those of all branches of a semi-supervised one."""
    samples = data_batch['data_samples']
    branches = samples.values() if isinstance(samples, dict) else [samples]
    return [sample for branch in branches for sample in branch if sample is not None]


def _name(model: nn.Module) -> str:
    return type(model).__name__


def _parameters(model: BaseDetector) -> str:
    parts = {'': model}
    if isinstance(model, Distiller):
        teachers = {
            'teacher' if name == 'teacher' else f'teacher {name}': x
            for name, x in model.teachers.items()
        }
        terms = {f'term {name}': x for name, x in model.terms.items()}
        parts = {'student': model.student, **teachers, **terms}
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    return ', '.join(
        f'{name} {count / 1e6:.1f} M'.strip() for name, count in counts.items() if count
    )


def _peak_memory() -> str:
    if not torch.cuda.is_available():
        return ''
    return f'; peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB'
