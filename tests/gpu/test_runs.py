"""Runs: steps on the processes of a group, and a run in mixed precision that is resumed."""

import os
import socket
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from mmdet.utils import register_all_modules
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper

from mmdet_sssd.commands.random_batch import random_batch
from mmdet_sssd.runs import load_from_local

from ..small_runner import draw_shapes, small_runner
from . import ON_GPU
from .test_numbers import distiller, relative_error

SCALE = dict(init_scale=2.0**10, growth_interval=3)  # grows in the first iteration after the resume
RESUMED = 1e-2  # the weights' relative difference; GPU kernels add up in any order


def distributed_steps() -> None:
    """Train two steps as one process of a group, which the environment describes."""
    rank = int(os.environ['LOCAL_RANK'])
    torch.cuda.set_device(rank)
    dist.init_process_group('nccl')
    model = MMDistributedDataParallel(
        distiller('retinanet', f'cuda:{rank}'), device_ids=[rank], broadcast_buffers=False
    )
    optim_wrapper = OptimWrapper(torch.optim.AdamW(model.parameters(), lr=1e-3))
    before = [x.detach().clone() for x in model.parameters()]
    for _ in range(2):  # DDP finds parameters without a gradient in the second step
        objects = 3 if rank == 0 else 0
        model.train_step(random_batch(model.module, (64, 96), 2, objects), optim_wrapper)
    weights = [x.detach() for x in model.parameters()]
    assert not any(torch.equal(x, y) for x, y in zip(before, weights, strict=True))
    flat = torch.cat([x.flatten() for x in weights])
    every = [torch.empty_like(flat) for _ in range(dist.get_world_size())]
    dist.all_gather(every, flat)
    assert flat.isfinite().all()
    assert all(torch.equal(x, flat) for x in every)
    dist.destroy_process_group()


@pytest.mark.skipif(not ON_GPU, reason='tests/processes shows this on a CPU')
@pytest.mark.parametrize('count', [1, 2])
def test_every_parameter_moves_alike_in_all_processes(count):
    if count > torch.cuda.device_count():
        pytest.skip('there are too few GPUs')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', str(count)),
        *('--master_addr', '127.0.0.1', '--master_port', str(port), '-m', 'tests.gpu.test_runs'),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.skipif(not ON_GPU, reason='mixed precision needs a GPU')
@pytest.mark.parametrize('precision', ['bfloat16', 'float16'])
def test_a_resumed_run_in_mixed_precision_goes_on(tmp_path, precision, note):
    """Its scaler as it was, and its weights as the uninterrupted run's."""
    shapes = draw_shapes(tmp_path / 'shapes')
    whole = amp_run(tmp_path / 'whole', shapes, precision)
    whole.train()
    saved = str(tmp_path / 'whole/epoch_1.pth')
    resumed = amp_run(tmp_path / 'resumed', shapes, precision, resume=True, load_from=saved)
    resumed.train()
    weights = [torch.cat([x.flatten() for x in run.model.parameters()]) for run in (whole, resumed)]
    note(to_the_bit=torch.equal(*weights), error=relative_error(*weights[::-1]))
    assert relative_error(*weights[::-1]) <= RESUMED
    states = [run.optim_wrapper.loss_scaler.state_dict() for run in (whole, resumed)]
    scale = load_from_local(saved, 'cpu')['optimizer']['loss_scaler']['scale']
    note(saved_scale=scale, last_scale=states[0]['scale'])
    assert states[0] == states[1]


def amp_run(folder, shapes, precision, **kwargs):
    """Make a run of four iterations with a checkpoint in the middle."""
    wrapper = dict(type='AmpOptimWrapper', dtype=precision, loss_scale=SCALE)
    return small_runner(
        folder,
        shapes,
        optim_wrapper=dict(**wrapper, optimizer=dict(type='AdamW', lr=1e-3)),
        default_hooks=dict(random_state=dict(type='RandomStateHook')),
        **dict.fromkeys(('val_dataloader', 'val_evaluator', 'val_cfg')),
        **kwargs,
    )


if __name__ == '__main__':
    register_all_modules()
    distributed_steps()
