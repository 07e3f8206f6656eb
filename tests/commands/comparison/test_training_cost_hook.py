"""Time and memory are those of training."""

import resource
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub

from mmdet_sssd.commands.comparison.training_cost_hook import TrainingCostHook, peak_memory

STATUS = Path('/proc/self/statm')


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(time=1000.0)
    monkeypatch.setattr(time, 'time', lambda: now.time)
    return now


def test_validation_is_no_part_of_the_next_iteration(clock):
    """Iterations of 1 s loading and 2 s computing; 105 s to evaluate."""
    hook, hub = TrainingCostHook(), MessageHub('cost')
    runner = SimpleNamespace(iter=0, max_iters=2, val_dataloader=[0], message_hub=hub)
    hook.before_train(runner)
    hook.before_train_epoch(runner)
    for _ in range(2):
        clock.time += 1
        hook.before_train_iter(runner, runner.iter)
        clock.time += 2
        hook.after_train_iter(runner, runner.iter)
        runner.iter += 1
        hook.before_val(runner)
        hook.before_val_epoch(runner)
        hook.before_val_iter(runner, 0)
        clock.time += 5
        hook.after_val_iter(runner, 0)
        clock.time += 100
        hook.after_val_epoch(runner)
        hook.after_val(runner)
    assert hub.get_scalar('train/time').data[0].tolist() == [3, 3]


@pytest.mark.skipif(torch.cuda.is_available(), reason='the peak is that of the GPU then')
@pytest.mark.skipif(not STATUS.exists(), reason='needs Linux to know how much is in use')
def test_peak_memory_on_a_cpu_grows_with_what_is_used():
    before = peak_memory()
    pages = int(STATUS.read_text().split()[1])
    unused = before - pages * resource.getpagesize() / 2**20
    block = np.ones(int(unused + 64) * 2**20, np.uint8)
    assert before + 32 < peak_memory() < before + 96
    assert peak_memory() <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10 + 1
    del block
    assert peak_memory() > before + 32
