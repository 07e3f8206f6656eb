"""A hook for the tests of resuming: the process is gone, without a word, before a given iteration."""

import os
import signal

from mmdet.registry import HOOKS
from mmengine.hooks import Hook


@HOOKS.register_module()
class KillHook(Hook):
    priority = 'VERY_HIGH'

    def __init__(self, before_iter):
        self.before_iter = before_iter

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.before_iter:
            os.kill(os.getpid(), signal.SIGKILL)
