"""What training costs in time and memory, kept in the checkpoints."""

import re
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import HOOKS
from mmengine.hooks import IterTimerHook
from mmengine.hooks.hook import DATA_BATCH
from mmengine.runner import Runner


@HOOKS.register_module()
class TrainingCostHook(IterTimerHook):
    """Times iterations as mmengine does, without validation, and logs the peak memory.

    mmengine counts the evaluation after validation as part of the next iteration of an iteration
    loop. ``peak_memory`` is logged in MiB, see :func:`peak_memory`. Both are in each checkpoint's
    message hub, for every iteration of the run, as ``train/time`` and ``train/peak_memory``; so is
    the name of the ``device``.
    """

    def before_train(self, runner: Runner) -> None:
        """Note what is trained on."""
        super().before_train(runner)
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'
        runner.message_hub.update_info('device', device)

    def after_val(self, runner: Runner) -> None:
        """Start the next training iteration's clock."""
        self.t = time.time()

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: DATA_BATCH = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Note time and memory."""
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        runner.message_hub.update_scalar('train/peak_memory', peak_memory())


def peak_memory() -> float:
    """Measure in MiB: on a GPU what torch has allocated at most, else the process's largest size.

    The latter is the resident set of the whole process, Python and validation included, without
    worker processes.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    try:  # the kernel's other counter starts with the size of the parent process
        status = Path('/proc/self/status').read_text(encoding='utf-8')
        return int(re.search(r'VmHWM:\s+(\d+) kB', status)[1]) / 2**10
    except (OSError, TypeError):
        unit = 1 if sys.platform == 'darwin' else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
