import atexit
import math
import os
import os.path as osp
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from mmdet.registry import HOOKS
from mmengine.dist import is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from ..errors import ConfigError
from .checkpoint_files import PREEMPTED, AtomicLocalBackend
from .random_state_hook import RandomStateHook
from .safe_checkpoint_hook import SafeCheckpointHook, validates

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
FORWARDED_WITHIN = 5  # seconds


@HOOKS.register_module()
class PreemptionHook(Hook):
    """Lets a run save a checkpoint and exit on a signal, so that ``--resume`` continues it.

    After SIGTERM, SIGUSR1, SIGUSR2 or Ctrl-C (SIGINT) the run finishes the current iteration, saves
    ``preempted.pth`` unless another checkpoint has that iteration, names it in ``last_checkpoint``, and
    exits with code 75 (EX_TEMPFAIL, "try again later"). The resumed run equals an uninterrupted one to
    the bit, within the limits of ``RandomStateHook``, and removes the file with its next checkpoint.

    - With gradient accumulation the run exits after the optimizer's next step.
    - A validation is abandoned, and the resumed run starts with it; one already computing its metrics,
      or evaluating the teacher (``EvalTeacherHook``), is finished.
    - On several processes a signal to any of them is enough. All exit after the same iteration, the
      one that follows the signal or the next.
    - A second signal ends the process at once: Ctrl-C always, another after 5 seconds. (Within these it
      counts with the first: schedulers send several, and launchers forward them.)
    - Loader workers ignore these signals.

    Signals that the process ignores stay ignored. Needs ``SafeCheckpointHook`` and
    ``RandomStateHook``.

    Raises:
        ConfigError: before training, if one of these hooks is missing.
    """

    priority = 'LOWEST'  # after the other hooks of an iteration
    EXIT_CODE = 75

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.is_ending = False  # on all processes
        self.is_training = False
        self.vote: _Vote | None = None
        self.handlers: dict[int, Any] = {}  # replaced handlers, by signal

    def before_run(self, runner: Runner) -> None:
        """Handle signals from here on, in training."""
        if not _is_running(type(runner).train.__code__, sys._getframe()):
            return
        self.checkpoint_hook = _hook_of(runner, SafeCheckpointHook)
        _hook_of(runner, RandomStateHook)
        self.vote = _Vote() if runner.world_size > 1 else None
        self.is_training = True
        for loop in filter(None, (runner.train_loop, runner.val_loop)):
            loader = loop.dataloader
            if isinstance(loader, DataLoader):
                loader.worker_init_fn = partial(_init_worker, loader.worker_init_fn)
                loader._get_iterator = partial(_start_without_signals, loader._get_iterator)
        if threading.current_thread() is threading.main_thread():  # the only one that handles them
            self._listen(runner)

    def after_train_iter(self, runner: Runner, batch_idx: int, **kwargs: Any) -> None:
        """Exit on request, if no gradients wait for the optimizer's step."""
        loop, num_done = runner.train_loop, runner.iter + 1
        if not self._ends_after_step(runner):
            return
        if not isinstance(loop, EpochBasedTrainLoop):
            if (is_due := validates(runner, num_done)) or num_done < loop.max_iters:
                self._save_and_exit(runner, runner.epoch, num_done, is_due)
        elif batch_idx + 1 != len(loop.dataloader):  # else the epoch's own hooks run first
            self._save_and_exit(runner, runner.epoch, num_done)

    def after_train_epoch(self, runner: Runner) -> None:
        """Exit on request at the end of an epoch."""
        loop, num_done = runner.train_loop, runner.epoch + 1
        is_due = validates(runner, num_done)
        goes_on = isinstance(loop, EpochBasedTrainLoop) and (is_due or num_done < loop.max_epochs)
        if goes_on and self._ends_after_step(runner):
            self._save_and_exit(runner, num_done, runner.iter, is_due)

    def before_val(self, runner: Runner) -> None:
        """Count the batches that every process validates."""
        if self.is_training and self.vote:
            self.num_val_batches = self.vote.least(len(runner.val_loop.dataloader))

    def after_val_iter(self, runner: Runner, batch_idx: int, **kwargs: Any) -> None:
        """Abandon a validation on request, restoring the state before it."""
        if not self.is_training or (self.vote and batch_idx >= self.num_val_batches):
            return
        if self._ends():  # RandomStateHook saves gradients that wait
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):
                    hook._swap_ema_parameters()
            self._save_and_exit(runner, runner.epoch, runner.iter, validates_first=True)

    def after_train(self, runner: Runner) -> None:
        """Restore the signal handlers."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers = {}
        self.is_training = False

    def _listen(self, runner: Runner) -> None:
        train = type(runner).train.__code__
        forwarded_until, process = math.inf, os.getpid()

        def handle(number: int, frame: FrameType | None) -> None:
            nonlocal forwarded_until
            if os.getpid() != process:  # a metric's pool ends its processes by SIGTERM
                if number == signal.SIGTERM:
                    _pass_on(number, signal.SIG_DFL)
            elif not _is_running(train, frame):  # training has failed, so no iteration will end
                _pass_on(number, self.handlers[number])
            elif self.signal is None:
                forwarded_until = time.monotonic() + FORWARDED_WITHIN
                self.signal = signal.Signals(number)
                if runner.rank == 0:  # not the logger, which may hold a lock
                    notice = 'the run saves a checkpoint after this iteration and ends'
                    notice = f'\n{self.signal.name}: {notice}; a second signal ends it at once.\n'
                    os.write(2, notice.encode())
            elif number == signal.SIGINT or time.monotonic() > forwarded_until:
                _pass_on(number, signal.SIG_DFL)

        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self.handlers[number] = signal.signal(number, handle)

    def _ends(self) -> bool:
        """Tell, alike on all processes, whether to exit on request."""
        if not self.is_ending:
            is_asked = self.signal is not None
            self.is_ending = self.vote(is_asked) if self.vote else is_asked
        return self.is_ending

    def _ends_after_step(self, runner: Runner) -> bool:
        """Tell, alike on all processes, whether to exit now that no gradients wait."""
        return self._ends() and runner.optim_wrapper.should_update()

    def _save_and_exit(
        self, runner: Runner, epoch: int, iterations: int, validates_first: bool = False
    ) -> None:
        hook = self.checkpoint_hook
        if hook.is_resumable and iterations == hook.saved_iter:
            path = hook.last_ckpt
        elif runner._resume and iterations == hook.first_iter:
            path = runner._load_from
        else:
            path = osp.join(hook.out_dir, PREEMPTED)
            runner.call_hook('before_saving')
            runner.save_checkpoint(
                hook.out_dir,
                PREEMPTED,
                meta=dict(epoch=epoch, iter=iterations, validates_first=validates_first),
                by_epoch=False,
                backend_args=hook.backend_args,
            )
        if is_main_process():
            AtomicLocalBackend().put_text(path, osp.join(runner.work_dir, 'last_checkpoint'))
            runner.logger.warning(
                f'{self.signal.name if self.signal else "Another process got a signal"}: the run ends '
                f'after iteration {iterations}. Saved {path}; continue with --resume (exit code '
                f'{self.EXIT_CODE}).'
            )
        if self.vote:
            self.vote.wait_for_all()  # launchers kill the others when the first exits
        for number in self.handlers:
            signal.signal(number, signal.SIG_IGN)
        sys.exit(self.EXIT_CODE)


class _Vote:
    """Tells all processes, after the same iteration, that one of them got a signal.

    After each iteration every process sends a flag and reads the result of the previous iteration's
    flags. gloo exchanges them between CPUs during the next iteration, so that no process waits.
    """

    def __init__(self) -> None:
        self.group = dist.new_group(backend='gloo')
        self.pending: tuple[dist.Work, torch.Tensor] | None = None

    def __call__(self, flag: bool) -> bool:
        """Send this process's flag; tell whether any process set its previous flag."""
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
        """Compute the minimum of the processes' numbers."""
        numbers = torch.tensor(number)
        dist.all_reduce(numbers, dist.ReduceOp.MIN, self.group)
        return numbers.item()

    def wait_for_all(self) -> None:
        """Wait for all processes, and let each leave its groups at exit, without a warning."""
        dist.barrier(self.group)
        atexit.register(dist.destroy_process_group)


def _is_running(code: Any, frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame is not None


def _pass_on(number: int, handler: Any) -> None:
    """Send the signal to this process again, for another handler."""
    signal.signal(number, handler)
    os.kill(os.getpid(), number)


def _hook_of(runner: Runner, kind: type[Hook]) -> Hook:
    for hook in runner.hooks:
        if isinstance(hook, kind):
            return hook
    raise ConfigError(
        f"PreemptionHook needs the hook {kind.__name__}; add dict(type='{kind.__name__}') to "
        'default_hooks (as checkpoint or random_state), or remove PreemptionHook'
    )


def _start_without_signals(get_iterator: Callable[[], Any]) -> Any:
    """Start a loader's workers with signals blocked, which they stay in the workers."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        return get_iterator()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _init_worker(init_fn: Callable[[int], None] | None, worker: int) -> None:
    """Initialise a loader's worker that obeys SIGTERM from its parent, with which Python ends it."""
    if hasattr(signal, 'sigwaitinfo'):  # not on macOS
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    if init_fn is not None:
        init_fn(worker)


def _end_with_parent(parent: int) -> None:
    """Exit on SIGTERM from the parent."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
