"""Real runs, each in a process of its own, of the command line, or through mim."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

from mmdet_sssd.commands.shapes import draw_data_set
from mmdet_sssd.runs import load_from_local

from ..command import run_command
from ..small_runner import WITHOUT_WORKERS, shapes_environment
from .run_comparison import assert_equal_states, scalars

ROOT = Path(__file__).parents[2]
SMALL = 'sssd_retinanet_r18-small_own-data.py'
CONFIG = ROOT / 'configs/demo' / SMALL
FASTER_RCNN = """
_base_ = ['{own_data}', '{distiller}', 'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
          'mmdet::_base_/default_runtime.py']
from mmdet_sssd.recipes import paper
student = _base_.model
student.backbone.update(depth=18, base_channels=16, frozen_stages=-1, norm_eval=False, init_cfg=None)
student.neck.update(in_channels=[16, 32, 64, 128], out_channels=32)
student.rpn_head.update(in_channels=32, feat_channels=32)
student.roi_head.bbox_roi_extractor.out_channels = 32
student.roi_head.bbox_head.update(in_channels=32, fc_out_channels=32, num_classes=_base_.num_classes)
student.train_cfg.rcnn.sampler.num = 16
model = dict(paper.model, _delete_=True, student=student)
train_pipeline = [step for step in _base_.train_pipeline if step['type'] != 'RandomFlip']
train_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(pipeline=train_pipeline),
    sampler=dict(_delete_=True, type='InfiniteSampler', shuffle=True), batch_sampler=None)
val_dataloader = dict(num_workers=0, persistent_workers=False)
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=12, val_interval=4)
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=1e-4),
    clip_grad=dict(type='value', clip_value=1.))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=3),
    dict(type='MultiStepLR', by_epoch=False, milestones=[8, 11], gamma=0.1)]
checkpoint = dict(paper.hooks['checkpoint'], by_epoch=False, interval=3)
phases = dict(paper.hooks['phases'], detach_student=1 / 2)
default_hooks = dict(paper.hooks, logger=dict(interval=1), checkpoint=checkpoint, phases=phases)
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
visualizer = dict(name='{config}')  # runs of one process that share a name share a log
custom_imports = dict(imports=['mmdet_sssd', 'tests.quick_configs'])
"""


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    """A drawn data set of 16 + 8 images, and the environment that points configs to it."""
    out = tmp_path_factory.mktemp('shapes')
    draw_data_set(out, train=16, val=8, size=64)
    return shapes_environment(out, epochs=3)


def run(command, env=None, code=0, cwd=ROOT) -> str:
    """Run a command to its end, in a process group of its own, and give what it printed."""
    result = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, 'PYTHONWARNINGS': 'ignore', 'PYTHONPATH': str(ROOT), **(env or {})},
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        check=False,
    )
    assert result.returncode == code, result.stdout[-4000:]
    return result.stdout


def train(config, work_dir, env, *args, **kwargs) -> str:
    command = [sys.executable, '-m', 'mmdet_sssd', 'train', config, '--work-dir', work_dir, *args]
    return run(command, env, **kwargs)


def interrupted(config, path, hook):
    """Write a config whose runs are interrupted by a hook."""
    imports = ['mmdet_sssd', 'tests.quick_configs', 'tests.tools.interruption']
    path.write_text(
        f"_base_ = ['{config}']\ncustom_imports = dict(imports={imports})\ncustom_hooks = [{hook}]\n"
    )
    return path


def test_killed_and_resumed_run_equals_an_uninterrupted_one_to_the_bit(shapes, tmp_path):
    """Of a Faster R-CNN, which samples RoIs at random; it is killed just before λ rises."""
    bases = {name: ROOT / f'configs/_base_/{name}.py' for name in ('own_data', 'distiller')}
    config = tmp_path / 'config.py'
    config.write_text(FASTER_RCNN.format(config=config, **bases))
    with mock.patch.dict(os.environ, shapes):
        assert run_command('train', config, '--work-dir', tmp_path / 'whole') == (0, '')
    whole = scalars(tmp_path / 'whole')
    assert len(whole) == 12
    log = next((tmp_path / 'whole').glob('*/*.log')).read_text()
    assert 'trains the student, too, from here on' in log
    assert [whole[i]['distill_coef'] for i in (8, 9)] == [10, 20]  # steps count from 1

    killing = interrupted(config, tmp_path / 'killing.py', dict(type='KillHook', before_iter=7))
    train(killing, tmp_path / 'killed', shapes, code=-signal.SIGKILL)
    assert max(scalars(tmp_path / 'killed')) == 7
    resumed = train(config, tmp_path / 'killed', shapes, '--resume')
    assert re.search(r'resumed epoch: \d+, iter: [1-9]', resumed)

    checkpoints = (tmp_path / x / 'iter_12.pth' for x in ('killed', 'whole'))
    ours, expected = (load_from_local(str(x)) for x in checkpoints)
    for key in ('state_dict', 'optimizer', 'param_schedulers', 'adaptive_distill_coef.distill'):
        assert_equal_states(ours[key], expected[key], key)
    assert scalars(tmp_path / 'killed') == whole
    assert 'holds Python objects' not in resumed


def test_mim_trains_and_tests(shapes, tmp_path):
    """As a user does it: from another folder, by the config's name."""
    mim = Path(sys.executable).with_name('mim')
    env = {**shapes, 'SSSD_MAX_EPOCHS': '1', 'PYTHONPATH': ''}  # the installed package
    # A detector that has seen 4 batches is sure of nothing.
    options = ['--cfg-options', 'model.student.test_cfg.score_thr=0', *WITHOUT_WORKERS]
    work_dir = tmp_path / 'run'
    command = [mim, 'train', 'mmdet_sssd', SMALL, '--work-dir', work_dir]
    trained = run([*command, *options], env, cwd=tmp_path)
    command = [mim, 'test', 'mmdet_sssd', SMALL, '--checkpoint', work_dir / 'epoch_1.pth']
    tested = run([*command, '--work-dir', tmp_path / 'test', *options], env, cwd=tmp_path)
    first, second = (x.split('coco/bbox_mAP:')[-1].split()[0] for x in (trained, tested))
    assert first == second
    assert 0 <= float(first) <= 1


@pytest.fixture(scope='module')
def preempted(shapes, tmp_path_factory):
    """A run that got Ctrl-C, with its workers, in its second epoch; and what it printed."""
    folder = tmp_path_factory.mktemp('preempted')
    hook = dict(type='SignalHook', numbers=[signal.SIGINT.value], train_iter=5, to_group=True)
    config = interrupted(CONFIG, folder / 'config.py', hook)
    env = {**shapes, 'SSSD_MAX_EPOCHS': '2'}
    return folder, env, train(config, folder / 'run', env, code=75)


def test_ctrl_c_saves_and_says_what_to_do(preempted):
    folder, _, output = preempted
    path = folder / 'run/preempted.pth'
    assert (folder / 'run/last_checkpoint').read_text() == str(path)
    assert load_from_local(str(path))['meta']['iter'] == 6
    assert 'Traceback' not in output
    assert output.splitlines()[-1].endswith(
        f'the run ends after iteration 6. Saved {path}; continue with --resume (exit code 75).'
    )


@pytest.mark.slow
def test_the_same_command_starts_a_run_from_its_weights_and_goes_on(preempted, tmp_path):
    folder, env, _ = preempted
    weights = folder / 'run/preempted.pth'
    env = {**env, 'SSSD_MAX_EPOCHS': '1'}
    command = (CONFIG, tmp_path, env, '--resume', '--cfg-options', f'load_from={weights}')
    assert f'Load checkpoint from {weights}' in train(*command)
    assert 'Epoch(train)' not in train(*command)


@pytest.mark.slow
def test_the_shipped_config_is_resumed_to_the_bit(preempted, tmp_path):
    """With random flips in two worker processes."""
    folder, env, _ = preempted
    train(CONFIG, folder / 'run', env, '--resume')
    train(CONFIG, tmp_path, env)
    assert scalars(folder / 'run') == scalars(tmp_path)
    assert not (folder / 'run/preempted.pth').exists()
    ours, expected = (load_from_local(str(x / 'epoch_2.pth')) for x in (folder / 'run', tmp_path))
    for key in ('state_dict', 'optimizer', 'param_schedulers', 'random_state', 'place_in_data'):
        assert_equal_states(ours[key], expected[key], key)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason='torchrun would train on the GPUs')
def test_torchrun_restarts_what_was_killed_on_two_processes_without_a_gpu(shapes, tmp_path):
    hook = dict(type='KillHook', before_iter=3, rank=1)
    config = interrupted(CONFIG, tmp_path / 'config.py', hook)
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    options = ['--launcher', 'pytorch', '--work-dir', tmp_path / 'run']
    options += ['default_hooks.logger.interval=1']
    command = [*torchrun, '--max-restarts', 1, '-m', 'mmdet_sssd', 'train', config, *options]
    env = {**shapes, 'SSSD_MAX_EPOCHS': '2'}
    refused = run(command, env, code=1)
    assert 'set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1' in refused
    output = run(command, {**env, 'TORCH_DISABLE_SHARE_RDZV_TCP_STORE': '1'})
    assert re.search(r'Distributed training: True\s+GPU number: 2', output)
    assert 'Epoch(train) [1][2/2]' in output  # 16 images, 2 processes of 4 each
    assert 'Epoch(val) [1]' in output
    assert 'resumed epoch: 1, iter: 2' in output
    assert all(row['loss_distill'] > 0 for row in scalars(tmp_path / 'run').values())
    assert load_from_local(str(tmp_path / 'run/epoch_2.pth'))['meta']['iter'] == 4


@pytest.mark.slow
def test_mim_does_not_kill_what_saves(shapes, tmp_path):
    """Ctrl-C goes to mim, too, which kills what it started after a quarter of a second."""
    mim = tmp_path / 'mim'
    mim.write_text('import subprocess, sys\nsubprocess.check_call(sys.argv[1:])\n')
    hook = dict(type='SignalHook', numbers=[signal.SIGINT.value], train_iter=1, to_group=True)
    config = interrupted(CONFIG, tmp_path / 'config.py', hook)
    command = [sys.executable, mim, sys.executable, 'tools/train.py', config]
    output = run([*command, '--work-dir', tmp_path / 'run'], shapes, code=-signal.SIGINT)
    assert 'continue with --resume' in output  # it waits until all have closed it
    assert (tmp_path / 'run/last_checkpoint').read_text().endswith('preempted.pth')
