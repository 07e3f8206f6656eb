"""Hooks for the tests of resuming: they send signals to the process that they are in."""

import os
import signal

from mmdet.registry import HOOKS
from mmengine.hooks import Hook


@HOOKS.register_module()
class KillHook(Hook):
    """The process is gone, without a word, before a given iteration of its first start.

    Args:
        before_iter: The iteration.
        rank: Which of several processes.
    """

    priority = 'VERY_HIGH'

    def __init__(self, before_iter, rank=0):
        self.before_iter = before_iter
        self.rank = rank

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        is_first_start = os.environ.get('TORCHELASTIC_RESTART_COUNT', '0') == '0'
        if (runner.iter, runner.rank) == (self.before_iter, self.rank) and is_first_start:
            os.kill(os.getpid(), signal.SIGKILL)


@HOOKS.register_module()
class SignalHook(Hook):
    """Sends signals before an iteration of training or of a validation.

    Args:
        numbers: The signals.
        train_iter: The iteration of training.
        val_iter: Iteration of training, and batch of the validation after it.
        to_group: Whether to send them to the workers too, as a terminal and schedulers do.
    """

    def __init__(self, numbers, train_iter=None, val_iter=None, to_group=False):
        self.numbers = numbers
        self.train_iter = train_iter
        self.val_iter = val_iter
        self.to_group = to_group

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.train_iter:
            self.send()

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if (runner.iter, batch_idx) == self.val_iter:
            self.send()

    def send(self):
        for number in self.numbers:
            if self.to_group:
                os.killpg(0, number)
            else:
                os.kill(os.getpid(), number)
