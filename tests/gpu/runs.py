"""Runs: one step on the processes of a group, and a run in mixed precision that is resumed."""

import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner

from mmdet_sssd.runs import load_from_local

from ..small_runner import draw_shapes, small_runner
from .checks import Settings, Skipped, Wrong, within
from .numbers import distiller, relative_error
from .training import random_batch

SCALE = dict(init_scale=2.0**10, growth_interval=3)  # grows in the first iteration after the resume
RESUMED = 1e-2  # the weights' relative difference; GPU kernels add up in any order


def distributed_step() -> None:
    """Train two steps as one process of a group, which the environment describes.

    Raises:
        Wrong: if a parameter stays where it was, or is not finite or not that of the other processes.
    """
    on_gpu = torch.cuda.is_available()
    rank = int(os.environ['LOCAL_RANK'])
    if on_gpu:
        torch.cuda.set_device(rank)
    dist.init_process_group('nccl' if on_gpu else 'gloo')
    try:
        model = MMDistributedDataParallel(
            distiller('retinanet', f'cuda:{rank}' if on_gpu else 'cpu'),
            device_ids=[rank] if on_gpu else None,
            broadcast_buffers=False,
        )
        optim_wrapper = OptimWrapper(torch.optim.AdamW(model.parameters(), lr=1e-3))
        before = [x.detach().clone() for x in model.parameters()]
        for _ in range(2):  # DDP finds parameters without a gradient in the second step
            objects = 3 if rank == 0 else 0
            model.train_step(random_batch(model.module, (64, 96), 2, objects), optim_wrapper)
        weights = [x.detach() for x in model.parameters()]
        if any(torch.equal(x, y) for x, y in zip(before, weights, strict=True)):
            raise Wrong('a parameter has not moved')
        flat = torch.cat([x.flatten() for x in weights])
        every = [torch.empty_like(flat) for _ in range(dist.get_world_size())]
        dist.all_gather(every, flat)
        if not flat.isfinite().all() or not all(torch.equal(x, flat) for x in every):
            raise Wrong('weights are not finite, or not the same in all processes')
    finally:
        dist.destroy_process_group()


def processes(count: int, settings: Settings) -> dict[str, Any]:
    """Train a step under DDP on some processes, with NCCL on a GPU each."""
    if not settings.on_gpu:
        raise Skipped('tests/processes shows this on a CPU')
    if count > torch.cuda.device_count():
        raise Skipped(f'there are {torch.cuda.device_count()} GPUs')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', str(count)),
        *('--master_addr', '127.0.0.1', '--master_port', str(port)),
        *('-m', 'tests.gpu.distributed_step'),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=150)
    if ended.returncode:
        (settings.out / f'processes_{count}.log').write_text(ended.stdout + ended.stderr)
        last = [
            x for x in (ended.stdout + ended.stderr).splitlines() if 'Error' in x or 'Wrong' in x
        ]
        raise Wrong(f'exit code {ended.returncode}: {(last or ["no message"])[0]}')
    return dict(processes=count)


def resumed_amp(precision: str, settings: Settings) -> dict[str, Any]:
    """Resume a run in mixed precision: scaler as it was, weights as of the uninterrupted run."""
    if precision == 'float16' and not settings.on_gpu:
        raise Skipped('mixed precision on a CPU is bfloat16')
    folder = settings.out / f'resumed_{precision}'
    shapes = draw_shapes(folder / 'shapes')
    whole = _amp_run(folder / 'whole', shapes, precision, settings)
    try:
        whole.train()
    except RuntimeError as error:
        if 'BFloat16' not in str(error):
            raise
        raise Skipped(f'the stock detector lacks an operator: {error}') from error
    saved = folder / 'whole' / 'epoch_1.pth'
    resumed = _amp_run(folder / 'resumed', shapes, precision, settings, saved)
    resumed.train()
    weights = [torch.cat([x.flatten() for x in run.model.parameters()]) for run in (whole, resumed)]
    numbers = dict(to_the_bit=torch.equal(*weights), error=relative_error(*weights[::-1]))
    if settings.on_gpu:
        before = load_from_local(str(saved), 'cpu')['optimizer']['loss_scaler']
        states = [run.optim_wrapper.loss_scaler.state_dict() for run in (whole, resumed)]
        numbers |= dict(saved_scale=before['scale'], last_scale=states[0]['scale'])
        if states[0] != states[1]:
            raise Wrong(f"the scaler's state is {states[1]}, not {states[0]}", **numbers)
    within('the relative difference of the weights', numbers['error'], RESUMED, **numbers)
    return numbers


def _amp_run(
    folder: Path, shapes: Path, precision: str, settings: Settings, resume_from: Path | None = None
) -> Runner:
    """Make a run of four iterations with a checkpoint in the middle."""
    wrapper = dict(type='CpuAmpOptimWrapper')
    if settings.on_gpu:
        wrapper = dict(type='AmpOptimWrapper', dtype=precision, loss_scale=SCALE)
    return small_runner(
        folder,
        shapes,
        optim_wrapper=dict(**wrapper, optimizer=dict(type='AdamW', lr=1e-3)),
        default_hooks=dict(random_state=dict(type='RandomStateHook')),
        **dict.fromkeys(('val_dataloader', 'val_evaluator', 'val_cfg')),
        resume=resume_from is not None,
        load_from=None if resume_from is None else str(resume_from),
    )


CHECKS = {
    'one_process': partial(processes, 1),
    'two_processes': partial(processes, 2),
    'resumed_bfloat16': partial(resumed_amp, 'bfloat16'),
    'resumed_float16': partial(resumed_amp, 'float16'),
}
