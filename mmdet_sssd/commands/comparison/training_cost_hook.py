"""Records the time and memory of training in the checkpoints."""

import re
import time
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import HOOKS
from mmengine.hooks import IterTimerHook
from mmengine.runner import Runner

STATUS = Path('/proc/self/status')


@HOOKS.register_module()
class TrainingCostHook(IterTimerHook):
    """Times iterations as mmengine does, without validation, and logs the peak memory.

    In an iteration loop, mmengine's own hook counts the evaluation as part of the next iteration.
    The message hub, and so each checkpoint, holds ``train/time`` and ``train/peak_memory`` (MiB) of
    every iteration, and the name of the ``device``.
    """

    def before_train(self, runner: Runner) -> None:
        """Record the device."""
        super().before_train(runner)
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'
        runner.message_hub.update_info('device', device)

    def after_val(self, runner: Runner) -> None:
        """Start the next training iteration's clock."""
        self.t = time.time()

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Record time and memory."""
        super().after_train_iter(runner, *args, **kwargs)
        runner.message_hub.update_scalar('train/peak_memory', peak_memory())


def peak_memory() -> float:
    """Measure the peak in MiB: torch's allocated memory on a GPU, otherwise the resident set.

    The resident set is the whole process's, Python and validation included, without worker processes;
    0 where Linux does not tell it.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    status = STATUS.read_text(encoding='utf-8') if STATUS.is_file() else ''
    found = re.search(r'VmHWM:\s+(\d+) kB', status)  # ru_maxrss starts with the parent's size
    return int(found[1]) / 2**10 if found else 0.0
