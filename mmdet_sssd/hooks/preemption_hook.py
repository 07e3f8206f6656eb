import atexit
import math
import os
import os.path as osp
import signal
import sys
import threading
import time
from bisect import bisect
from collections.abc import Callable, Sequence
from functools import partial
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from mmdet.registry import HOOKS
from mmengine.dist import is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.hooks.hook import DATA_BATCH
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from ..checkpoints import AtomicLocalBackend
from ..errors import ConfigError
from .random_state_hook import RandomStateHook
from .safe_checkpoint_hook import SafeCheckpointHook

SIGNALS = tuple(
    getattr(signal, name)
    for name in ('SIGTERM', 'SIGUSR1', 'SIGUSR2', 'SIGINT')
    if hasattr(signal, name)
)
FORWARDED_WITHIN = 5  # seconds
NOTICE = (
    '\n{}: the run saves a checkpoint after this iteration and ends; once more ends it at once.\n'
)


@HOOKS.register_module()
class PreemptionHook(Hook):
    """Lets a run that gets a signal save a checkpoint and end, so that ``--resume`` goes on with it.

    After SIGTERM, SIGUSR1, SIGUSR2 or Ctrl-C (SIGINT) the run ends the iteration at hand, saves
    everything in ``preempted.pth``, lets ``last_checkpoint`` name it, and ends with exit code 75
    (EX_TEMPFAIL, "try again later"). The resumed run equals one that was left alone to the bit, as far
    as ``RandomStateHook`` goes, and removes that file when it has saved another checkpoint.

    - With gradient accumulation the run ends after the optimizer's next step.
    - A validation is left; the resumed run starts with it. One that is computing its metrics is
      finished.
    - On several processes one signal is enough, whichever process gets it. All of them end after the
      same iteration, the one that follows the signal or the next.
    - A second signal ends the process at once: Ctrl-C always, another one after 5 seconds. (Within
      these it counts with the first: schedulers send several, and launchers hand them on.)
    - Worker processes of loaders leave these signals to the run.

    Signals that the process ignores stay ignored. Needs ``SafeCheckpointHook`` and
    ``RandomStateHook`` beside it.

    Raises:
        ConfigError: before training, if one of these is not there.

    Example:
        >>> default_hooks = dict(
        ...     random_state=dict(type='RandomStateHook'),
        ...     checkpoint=dict(type='SafeCheckpointHook'),
        ...     preemption=dict(type='PreemptionHook'),
        ... )
    """

    priority = 'LOWEST'  # an iteration is complete when the other hooks are done
    EXIT_CODE = 75
    FILENAME = 'preempted.pth'
    STATE_KEY = 'preemption'

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.is_ending = False  # on all processes
        self.vote: _Vote | None = None
        self.handlers: dict[int, Any] = {}  # those that were there before
        self.is_training = False
        self.validates_first = False  # when it is resumed
        self.is_own_save = False
        self.has_saved = False

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Learn whether a validation was left."""
        if runner._resume:
            self.validates_first = checkpoint.get(self.STATE_KEY, {}).get('validates_first', False)

    def before_train(self, runner: Runner) -> None:
        """Listen to signals from here on, and do the validation that was left."""
        self.checkpoint_hook = _hook_of(runner, SafeCheckpointHook)
        self.random_state_hook = _hook_of(runner, RandomStateHook)
        self.vote = _Vote() if runner.world_size > 1 else None
        self.is_training = True
        for loop in filter(None, (runner.train_loop, runner.val_loop)):
            loader = loop.dataloader
            if isinstance(loader, DataLoader):
                loader.worker_init_fn = partial(_init_deaf_worker, loader.worker_init_fn)
        self._listen(runner)
        self.has_saved = True  # an earlier run may have
        self._remove_outdated(runner)
        if self.validates_first:
            runner.val_loop.run()
        self.validates_first = False

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: DATA_BATCH = None,
        outputs: dict | None = None,
    ) -> None:
        """End the run if it is to end and no gradients would be lost."""
        self._remove_outdated(runner)
        loop = runner.train_loop
        if not self._ends(runner):
            return
        if not isinstance(loop, EpochBasedTrainLoop):
            num_done = runner.iter + 1
            validates = _validates(runner, num_done, loop.max_iters)
            if validates or num_done < loop.max_iters:
                self._save_and_exit(runner, runner.epoch, num_done, validates)
        elif batch_idx + 1 != len(loop.dataloader):  # or the epoch ends, with hooks of its own
            self._save_and_exit(runner, runner.epoch, runner.iter + 1)

    def after_train_epoch(self, runner: Runner) -> None:
        """End the run at the end of an epoch of an epoch loop."""
        self._remove_outdated(runner)
        loop = runner.train_loop
        if isinstance(loop, EpochBasedTrainLoop) and self._ends(runner):
            num_done = runner.epoch + 1
            validates = _validates(runner, num_done, loop.max_epochs)
            if validates or num_done < loop.max_epochs:
                self._save_and_exit(runner, num_done, runner.iter, validates)

    def before_val(self, runner: Runner) -> None:
        """Learn how many batches each process validates."""
        if self.is_training and self.vote:
            self.num_val_batches = self.vote.least(len(runner.val_loop.dataloader))

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: DATA_BATCH = None,
        outputs: Sequence | None = None,
    ) -> None:
        """Leave a validation, with everything as it was before it."""
        if not self.is_training or (self.vote and batch_idx >= self.num_val_batches):
            return
        if self._ends(runner):
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):
                    hook._swap_ema_parameters()
            self._save_and_exit(runner, runner.epoch, runner.iter, validates_first=True)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Note in a checkpoint of this hook whether a validation was left."""
        self.has_saved = True
        if self.is_own_save:
            checkpoint[self.STATE_KEY] = dict(validates_first=self.validates_first)

    def after_train(self, runner: Runner) -> None:
        """Give signals back to whom they belonged to, and remove what is outdated."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers = {}
        self.is_training = False
        if is_main_process() and self._named(runner) == self._path:
            # The last epoch was saved and only its validation was left.
            last = runner.message_hub.get_info('last_ckpt')
            if last and self.checkpoint_hook.file_backend.exists(last):
                _write_last_checkpoint(runner, last)
                self.has_saved = True
        self._remove_outdated(runner)

    def _listen(self, runner: Runner) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # signals are the main thread's
        train = type(runner).train.__code__
        forwarded_until = math.inf

        def handle(number: int, frame: FrameType | None) -> None:
            nonlocal forwarded_until
            if not _is_running(train, frame):  # training has failed: no iteration will end
                _pass_on(number, self.handlers[number])
            elif self.signal is None:
                forwarded_until = time.monotonic() + FORWARDED_WITHIN
                self.signal = signal.Signals(number)
                if runner.rank == 0:  # not by the logger, which may be at work
                    os.write(2, NOTICE.format(self.signal.name).encode())
            elif number == signal.SIGINT or time.monotonic() > forwarded_until:
                _pass_on(number, signal.SIG_DFL)

        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self.handlers[number] = signal.signal(number, handle)

    def _ends(self, runner: Runner) -> bool:
        """Tell, on all processes alike, whether the run is to end and the optimizer has stepped."""
        if not self.is_ending:
            is_asked = self.signal is not None
            self.is_ending = self.vote(is_asked) if self.vote else is_asked
        return self.is_ending and runner.optim_wrapper.should_update()

    def _save_and_exit(
        self, runner: Runner, epoch: int, iterations: int, validates_first: bool = False
    ) -> None:
        self.is_own_save = True
        self.validates_first = validates_first
        runner.call_hook('before_saving')
        hook = self.checkpoint_hook
        runner.save_checkpoint(
            hook.out_dir,
            self.FILENAME,
            hook.file_client_args,
            meta=dict(epoch=epoch, iter=iterations),
            by_epoch=False,
            backend_args=hook.backend_args,
        )
        if is_main_process():
            _write_last_checkpoint(runner, self._path)
            runner.logger.warning(
                f'{self.signal.name if self.signal else "Another process got a signal"}: the run ends '
                f'after iteration {iterations}. Saved {self._path}; go on with --resume (exit code '
                f'{self.EXIT_CODE}).'
            )
        if self.vote:
            self.vote.wait_for_all()  # launchers kill the others when the first one ends
        for number in self.handlers:
            signal.signal(number, signal.SIG_IGN)
        sys.exit(self.EXIT_CODE)

    @property
    def _path(self) -> str:
        hook = self.checkpoint_hook
        return hook.file_backend.join_path(hook.out_dir, self.FILENAME)

    def _named(self, runner: Runner) -> str:
        path = osp.join(runner.work_dir, 'last_checkpoint')
        if not osp.isfile(path):
            return ''
        with open(path, encoding='utf-8', errors='replace') as file:
            return file.read().strip()

    def _remove_outdated(self, runner: Runner) -> None:
        """Remove this hook's checkpoint when ``last_checkpoint`` names another."""
        if not self.has_saved:
            return
        self.has_saved = False
        if is_main_process() and self._named(runner) != self._path:
            backend = self.checkpoint_hook.file_backend
            if backend.exists(self._path):
                backend.remove(self._path)


class _Vote:
    """Lets all processes learn, after the same iteration, that one of them got a signal.

    After each iteration a flag is sent on its way, and the one of the iteration before is looked at.
    It goes between CPUs by gloo, in the background, while the next iteration runs, so that no process
    waits for another, and it is the same number that all of them look at. (mmengine reads the losses
    after each iteration, so that none is further ahead of its GPU than one.)
    """

    def __init__(self) -> None:
        self.group = dist.new_group(backend='gloo')
        self.pending: tuple[dist.Work, torch.Tensor] | None = None

    def __call__(self, flag: bool) -> bool:
        """Send this process's flag; tell whether any process had sent one after the last iteration."""
        result = False
        if self.pending:
            work, flags = self.pending
            work.wait()
            result = bool(flags)
        flags = torch.tensor(int(flag))
        work = dist.all_reduce(flags, dist.ReduceOp.MAX, self.group, async_op=True)
        self.pending = (work, flags)
        return result

    def least(self, number: int) -> int:
        """Tell the smallest of the processes' numbers."""
        numbers = torch.tensor(number)
        dist.all_reduce(numbers, dist.ReduceOp.MIN, self.group)
        return numbers.item()

    def wait_for_all(self) -> None:
        """Wait until all processes are here; at their end they leave the groups without a warning."""
        dist.barrier(self.group)
        atexit.register(dist.destroy_process_group)


def _validates(runner: Runner, num_done: int, num_all: int) -> bool:
    """Tell whether a loop validates after so many epochs or iterations, as mmengine decides it."""
    loop = runner.train_loop
    if runner.val_loop is None or num_done < loop.val_begin:
        return False
    interval = loop.dynamic_intervals[bisect(loop.dynamic_milestones, num_done + 1) - 1]
    return num_done % interval == 0 or num_done == num_all


def _is_running(code: Any, frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame is not None


def _pass_on(number: int, handler: Any) -> None:
    """Let a signal do what it does without this hook."""
    signal.signal(number, handler)
    os.kill(os.getpid(), number)


def _hook_of(runner: Runner, kind: type[Hook]) -> Hook:
    for hook in runner.hooks:
        if isinstance(hook, kind):
            return hook
    raise ConfigError(
        f"PreemptionHook needs {kind.__name__} among the hooks; add dict(type='{kind.__name__}') to "
        'default_hooks (as checkpoint or random_state), or remove PreemptionHook'
    )


def _init_deaf_worker(init_fn: Callable[[int], None] | None, worker: int) -> None:
    """Initialise a loader's worker; what a scheduler sends to all processes is not for it.

    A SIGTERM of its parent's is: that is how Python ends workers.
    """
    for number in set(SIGNALS) - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, 'sigwaitinfo'):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    if init_fn is not None:
        init_fn(worker)


def _end_with_parent(parent: int) -> None:
    """Wait for a SIGTERM of the parent's."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def _write_last_checkpoint(runner: Runner, path: str) -> None:
    AtomicLocalBackend().put_text(path, osp.join(runner.work_dir, 'last_checkpoint'))
