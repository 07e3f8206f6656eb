import copy
import os
import os.path as osp
from bisect import bisect
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape, glob
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import HOOKS
from mmengine.dist import all_gather_object, broadcast_object_list, is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner
from torch import Tensor, nn

from ..errors import ConfigError
from .checkpoint_files import (
    ADVICE,
    NONE_YET,
    PREEMPTED,
    AtomicLocalBackend,
    check_finite,
    find_checkpoint_to_resume,
    forget_earlier_run,
)


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """Saves checkpoints like mmengine's hook, but a run killed at any moment can be resumed.

    - Checkpoints are written to a temporary file and moved into place when whole. Outdated ones are
      removed afterwards.
    - A run with ``resume=True`` and no file to resume from takes the checkpoint that
      ``last_checkpoint`` names or, if that is lost or broken, the newest whole one. If all are broken
      the run ends; without any it starts from the beginning. The log says which. A run restarted by
      torchrun (``--max-restarts``) always continues from its own checkpoint.
    - A new run in the folder of an earlier one notes in ``last_checkpoint`` that it has none yet, so
      that it is not resumed from the earlier one's; one that is resumed from a given file notes that.
    - Half-written files of a killed run are removed when training starts.
    - A run that is resumed from a checkpoint whose validation was due starts with it, as it may have
      been interrupted.
    - The end of training is saved whatever ended it (``EarlyStoppingHook``), unless
      ``save_last=False``.
    - Weights and batch norms' statistics that are not finite are not saved: the run ends, and its last
      good checkpoint stays. So does a run whose loss is not finite in ``MOST_BROKEN`` iterations in
      a row.

    An outdated checkpoint stays if its run was killed before removing it. Works with any model.

    Args:
        args: As for :class:`mmengine.hooks.CheckpointHook`.
        kwargs: As for :class:`mmengine.hooks.CheckpointHook`.

    Raises:
        ConfigError: if ``out_dir`` or ``backend_args`` name other storage than local disks; before
            training, if all checkpoints of a resumed run are broken; when a checkpoint is due, if a
            parameter is infinite or not a number; when the loss has not been finite for a while.
    """

    MOST_BROKEN = 10

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.backend_args or self.file_client_args or '://' in (self.out_dir or ''):
            raise ConfigError(
                'SafeCheckpointHook saves on local disks; for other storage (out_dir, backend_args) '
                "use type='CheckpointHook', and set default_hooks.preemption=None"
            )
        self.backend_args = dict(backend='atomic_local')
        self.validates_first = False
        self.first_iter: int | None = None  # of this process's training
        self.saved_iter: int | None = None  # by this process
        self.num_broken = 0  # iterations in a row

    def before_run(self, runner: Runner) -> None:
        """Choose the checkpoint to resume from."""
        is_asked = runner._resume is True and runner._load_from is None
        if not (is_asked or self._goes_on(runner)):
            return
        found = find_checkpoint_to_resume(runner.work_dir, self._folder(runner), self.filename_tmpl)
        if found is not None:
            runner._resume, runner._load_from = True, found
        elif is_asked:
            runner._resume, runner._load_from = False, runner.cfg.get('load_from_at_start')

    def _goes_on(self, runner: Runner) -> bool:
        """Tell whether torchrun restarted a run that has checkpoints; else forget an earlier run's."""
        if self.first_iter is not None or not isinstance(runner._train_loop, BaseLoop):
            return False  # a test, perhaps after training
        pointer = Path(runner.work_dir, 'last_checkpoint')
        # of several nodes, only the one whose process died counts the restart
        if max(all_gather_object(int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)))) > 0:
            has_some = [pointer.exists() and pointer.read_text('utf-8', 'replace') != NONE_YET]
            broadcast_object_list(has_some)  # folders may differ
            return has_some[0]
        if not runner._resume and is_main_process():
            forget_earlier_run(runner.work_dir, self._folder(runner), self.filename_tmpl)
        return False

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Read whether a validation was due."""
        meta = checkpoint.get('meta', {})
        self.validates_first = runner._resume and meta.get('validates_first', False)

    def before_train(self, runner: Runner) -> None:
        """Note where the run goes on, remove half-written files of killed runs, and validate if due."""
        super().before_train(runner)
        # On a new best, the parent saves again if `last_ckpt` is set, which a resumed process lacks.
        self.last_ckpt = self.last_ckpt or runner.message_hub.get_info('last_ckpt')
        self.first_iter = runner.iter
        if is_main_process():
            if runner._resume and runner._load_from:
                # later ones in the folder are of the run that it left
                pointer = osp.join(runner.work_dir, 'last_checkpoint')
                AtomicLocalBackend().put_text(runner._load_from, pointer)
            for folder in {runner.work_dir, self.out_dir}:
                for path in glob(osp.join(escape(folder), f'*{AtomicLocalBackend.SUFFIX}')):
                    os.remove(path)
        if self.validates_first and runner.val_loop is not None:
            runner.val_loop.run()

    def after_train_iter(self, runner: Runner, *args: Any, outputs: dict, **kwargs: Any) -> None:
        """Save if due, and end a run that has diverged."""
        is_finite = torch.as_tensor(outputs.get('loss', 0.0)).isfinite().all()
        self.num_broken = 0 if is_finite else self.num_broken + 1
        if self.num_broken == self.MOST_BROKEN:
            broken = [k for k, x in outputs.items() if not torch.as_tensor(x).isfinite().all()]
            raise ConfigError(
                f'{", ".join(broken)}: not finite in {self.num_broken} iterations in a row, the last '
                f'is {runner.iter + 1}: the run diverged. {ADVICE}'
            )
        super().after_train_iter(runner, *args, outputs=outputs, **kwargs)

    def after_train(self, runner: Runner) -> None:
        """Save the end of training if something else than its length ended it."""
        if self.save_last and runner.iter not in (self.first_iter, self.saved_iter):
            step = runner.epoch if self.by_epoch else runner.iter
            meta = dict(epoch=runner.epoch, iter=runner.iter)
            meta['validates_first'] = validates(runner, _num_done(runner, meta))
            self._save_checkpoint_with_step(runner, step, meta)
        super().after_train(runner)

    def _folder(self, runner: Runner) -> str:
        """Find the checkpoint folder, as the parent does when training starts."""
        if self.out_dir in (None, runner.work_dir):
            return runner.work_dir
        return osp.join(self.out_dir, osp.basename(runner.work_dir.rstrip(osp.sep)))

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        """Save a checkpoint if its weights are finite; then remove the outdated."""
        check_finite(_learned(runner.model))
        if isinstance(runner.train_loop, EpochBasedTrainLoop) == self.by_epoch:
            meta['validates_first'] = validates(runner, _num_done(runner, meta))
        # on every process; mmengine's own call is on the first only
        runner.call_hook('before_saving')
        with self._removing_last():
            super()._save_checkpoint_with_step(runner, step, meta)
        if self.is_resumable and is_main_process():
            Path(self.out_dir, PREEMPTED).unlink(missing_ok=True)
        self.saved_iter = meta['iter']

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        """Save a new best checkpoint, if any, then remove the one it replaces."""
        if self.first_iter is None:  # a validation alone
            return
        with self._removing_last():
            super()._save_best_checkpoint(runner, metrics)

    @contextmanager
    def _removing_last(self) -> Iterator[None]:
        """Put removals of files and folders (DeepSpeed) off to the end of the context.

        What was written again by then, under the same name, stays.
        """
        backend, removals = self.file_backend, []
        self.file_backend = copy.copy(backend)
        self.file_backend.remove = lambda path: removals.append((backend.remove, path))
        self.file_backend.rmtree = lambda path: removals.append((backend.rmtree, path))
        try:
            yield
        finally:
            self.file_backend = backend
        best = [
            getattr(self, 'best_ckpt_path', None),
            *getattr(self, 'best_ckpt_path_dict', {}).values(),
        ]
        for remove, path in removals:
            if path not in (self.last_ckpt, *best):
                remove(path)

    @property
    def is_resumable(self) -> bool:
        """Whether checkpoints have all that a resumed run needs."""
        return self.save_optimizer and self.save_param_scheduler


def _learned(model: nn.Module) -> dict[str, Tensor]:
    """List a model's parameters and batch norms' statistics by name."""
    statistics = (
        x for x in model.named_buffers() if x[0].endswith(('running_mean', 'running_var'))
    )
    return {**dict(model.named_parameters()), **dict(statistics)}


def _num_done(runner: Runner, meta: dict) -> int:
    """Read from a checkpoint's ``meta`` how many epochs or iterations the loop has done."""
    return meta['epoch' if isinstance(runner.train_loop, EpochBasedTrainLoop) else 'iter']


def validates(runner: Runner, num_done: int) -> bool:
    """Tell, as mmengine does, whether a loop validates after ``num_done`` epochs or iterations."""
    loop = runner.train_loop
    if runner.val_loop is None or num_done < loop.val_begin:
        return False
    num_all = loop.max_epochs if isinstance(loop, EpochBasedTrainLoop) else loop.max_iters
    interval = loop.dynamic_intervals[bisect(loop.dynamic_milestones, num_done + 1) - 1]
    return num_done % interval == 0 or num_done == num_all
