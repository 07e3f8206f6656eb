"""Records the time and memory of training in the checkpoints."""

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

    In an iteration loop, mmengine's own hook counts the evaluation as part of the next iteration.
    ``peak_memory`` is logged in MiB, see :func:`peak_memory`. The message hub, and so each
    checkpoint, holds both for every iteration, as ``train/time`` and ``train/peak_memory``, and the
    name of the ``device``.
    """

    def before_train(self, runner: Runner) -> None:
        """Record the device."""
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
        """Record time and memory."""
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        runner.message_hub.update_scalar('train/peak_memory', peak_memory())


def peak_memory() -> float:
    """Measure the peak in MiB: torch's allocated memory on a GPU, otherwise the resident set.

    The resident set is the whole process's, Python and validation included, without worker processes.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    try:  # ru_maxrss starts with the size of the parent process
        status = Path('/proc/self/status').read_text(encoding='utf-8')
        return int(re.search(r'VmHWM:\s+(\d+) kB', status)[1]) / 2**10
    except (OSError, TypeError):
        unit = 1 if sys.platform == 'darwin' else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
