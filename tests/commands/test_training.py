"""What a user sees who got something wrong: the message alone, and no traceback of ours."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config

from mmdet_sssd import ConfigError
from mmdet_sssd.checks.settings import check_overrides
from mmdet_sssd.commands.locks import locked
from mmdet_sssd.commands.training import _set_torchrun_variables

from ..command import error_of, run_command, write_program

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / 'configs/demo/sssd_retinanet_r18-small_own-data.py'
STOCK = ROOT / 'configs/demo/retinanet_r18-small_own-data.py'


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A data set of one image without a file, and the environment that points configs to it."""
    (tmp_path / 'annotations').mkdir()
    (tmp_path / 'images').mkdir()
    box = dict(id=1, image_id=1, category_id=1, bbox=[1, 1, 9, 9], area=81, iscrowd=0)
    content = dict(
        images=[dict(id=1, file_name='a.jpg', height=64, width=64)],
        annotations=[box],
        categories=[dict(id=1, name='cat')],
    )
    for split in ('train', 'val'):
        (tmp_path / 'annotations' / f'{split}.json').write_text(json.dumps(content))
    monkeypatch.setenv('SSSD_DATA_ROOT', str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ('option', 'named'),
    {
        'model.bbox_head.num_classes=2': 'model.student.bbox_head',
        'default_hooks.distill_coef.polcy=constant': 'did you mean policy?',
        'trian_cfg.max_epochs=2': 'did you mean train_cfg?',
        'train_dataloader.datset.ann_file=a.json': 'did you mean dataset?',
        'default_hooks.phase.teacher_until=0.5': 'did you mean phases?',
        'lr=0.1': 'optim_wrapper.optimizer.lr',
        'max_epochs=2': 'SSSD_MAX_EPOCHS',
        'train_cfg.max_epochs.end=2': 'train_cfg.max_epochs is 24',
        'model.student.backbone.type=ResNett': 'did you mean ResNet',
        'train_dataloader.dataset.ann_file=none.json': '/none.json',
    }.items(),
)
def test_bad_settings_end_with_a_message(data, option, named):
    assert named in error_of('train', CONFIG, '--cfg-options', option, '--work-dir', data)


def test_missing_data_of_one_s_own_names_the_variable(monkeypatch, data):
    monkeypatch.setenv('SSSD_DATA_ROOT', '/nowhere')
    found = error_of('train', CONFIG)
    assert 'in the environment: there is no /nowhere/annotations/train.json (looked for' in found
    assert 'SSSD_DATA_ROOT' in found


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_mixed_precision_needs_a_gpu(data):
    assert '--amp' in error_of('train', CONFIG, '--amp', '--work-dir', data)


def test_a_missing_checkpoint_is_named(data):
    assert f'{data}/none.pth' in error_of('test', CONFIG, data / 'none.pth', '--work-dir', data)


def stock_weights(num_classes):
    model = Config.fromfile(STOCK).model
    model.bbox_head.num_classes = num_classes
    return MODELS.build(model).state_dict()


def test_a_checkpoint_of_another_detector_is_refused(data):
    """Whatever does not fit would be tested with random weights."""
    weights = stock_weights(1)
    others = {f'student.{key}': value for key, value in weights.items()}
    fewer = {key: value for key, value in weights.items() if not key.startswith('backbone.layer4')}
    for content, message in (
        (others, 'is missing in it'),
        (fewer, 'backbone.layer4.0.conv1.weight, of shape (256, 128, 3, 3), is missing'),
        (stock_weights(6), 'of shape (9, 64, 3, 3), is of shape (54, 64, 3, 3) in it'),
    ):
        torch.save({'state_dict': content}, data / 'other.pth')
        found = error_of('test', STOCK, data / 'other.pth', '--work-dir', data)
        assert found.startswith(f'{data}/other.pth does not fit the RetinaNet')
        assert message in found


def test_a_test_leaves_the_config_that_training_wrote(data):
    torch.save({'state_dict': stock_weights(1)}, data / 'a.pth')
    cv2.imwrite(str(data / 'images/a.jpg'), np.zeros((64, 64, 3), np.uint8))
    (data / STOCK.name).write_text('trained = 1')
    changes = [f'test_dataloader.{x}' for x in ('num_workers=0', 'persistent_workers=False')]
    command = ('test', STOCK, data / 'a.pth', '--work-dir', data, *changes)
    assert run_command(*command)[0] == 0
    assert (data / STOCK.name).read_text() == 'trained = 1'
    assert (data / f'test_{STOCK.name}').is_file()


def test_a_config_of_the_new_style_is_tested(data):
    Config.fromfile(STOCK).dump(data / 'base.py')
    lines = 'from mmengine.config import read_base', 'with read_base():', '    from .base import *'
    (data / 'lazy.py').write_text('\n'.join(lines))
    torch.save({'state_dict': stock_weights(1)}, data / 'a.pth')
    cv2.imwrite(str(data / 'images/a.jpg'), np.zeros((64, 64, 3), np.uint8))
    changes = [f'test_dataloader.{x}' for x in ('num_workers=0', 'persistent_workers=False')]
    command = ('test', data / 'lazy.py', data / 'a.pth', '--work-dir', data, *changes)
    assert run_command(*command)[0] == 0
    assert (data / 'test_lazy.py').is_file()


def test_more_classes_than_the_data_are_evaluated_with_are_refused(data):
    """COCO's metric would end with an IndexError at the first prediction of another class."""
    message = (
        f'the detector predicts 7 classes, but {data}/annotations/val.json is evaluated with 1: '
    )
    overrides = ['model.student.bbox_head.num_classes=7', '--work-dir', data]
    assert error_of('train', CONFIG, *overrides).startswith(message + 'cat. Make the num_classes')
    torch.save({'state_dict': stock_weights(7)}, data / 'a.pth')
    found = error_of('test', STOCK, data / 'a.pth', 'model.bbox_head.num_classes=7', *overrides[1:])
    assert found.startswith(message)
    assert found.endswith('and test_dataloader.dataset.metainfo.classes agree')


def test_a_second_run_in_a_folder_is_refused(data, monkeypatch):
    monkeypatch.setattr('mmdet_sssd.commands.training.SECONDS_TO_END', 0.1)
    with locked(data / 'work/.lock'):
        found = error_of('train', CONFIG, '--work-dir', data / 'work')
    assert found.startswith(f'another run is training in {data}/work, and both would write')


def test_a_second_process_of_a_run_whose_launcher_is_not_named_is_refused(data, monkeypatch):
    monkeypatch.setattr('mmdet_sssd.commands.training.SECONDS_TO_END', 0.1)
    monkeypatch.setenv('RANK', '1')
    with locked(data / 'work/.lock'):
        found = error_of('train', CONFIG, '--work-dir', data / 'work')
    assert found.endswith('processes of one run need --launcher)')


def test_a_file_system_without_locks_is_refused_where_they_are_needed(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOSYS, 'Function not implemented')

    monkeypatch.setattr('fcntl.flock', flock)
    with locked(tmp_path / 'lock', needed=False) as is_free:
        assert is_free
    message = f'^{tmp_path} is on a file system without locks'
    with pytest.raises(ConfigError, match=message), locked(tmp_path / 'lock'):
        pass


def test_the_message_is_all_that_is_said(data, monkeypatch):
    """By a process of its own, which imports what warns and ends with a traceback if we let it."""
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    monkeypatch.delenv('PYTHONWARNINGS', raising=False)
    (data / 'warns.py').write_text('import warnings\nwarnings.warn("heard")\n')
    imports = "custom_imports = dict(imports=['mmdet_sssd', 'warns'])"
    (data / 'config.py').write_text(f'_base_ = {str(CONFIG)!r}\n{imports}\n')
    command = [sys.executable, '-m', 'mmdet_sssd', 'train', 'config.py', 'model.distill_coef=-1']

    def run(*args):
        return subprocess.run([*command, *args], cwd=data, capture_output=True, text=True)

    quiet, debugged = run(), run('--debug')
    assert quiet.returncode == debugged.returncode == 1
    assert quiet.stderr.startswith('error: model.distill_coef is -1; accepted')
    assert len(quiet.stderr.splitlines()) == 1
    assert 'heard' not in quiet.stdout
    assert 'Traceback' in debugged.stderr
    assert 'heard' in debugged.stderr
    assert debugged.stderr.endswith(quiet.stderr)


def test_a_task_of_slurm_finds_the_others_as_torchrun_s_processes_do(tmp_path):
    script = '#!/bin/sh\n[ "$*" = "show hostnames a[1-2]" ] && echo a1; echo a2'
    write_program(tmp_path / 'scontrol', script)
    task = dict(SLURM_NODELIST='a[1-2]', SLURM_PROCID='3', SLURM_LOCALID='1', SLURM_NTASKS='4')
    given = {'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'MASTER_PORT': '23456', **task}
    with patch.dict(os.environ, given):
        os.environ.pop('MASTER_ADDR', None)
        _set_torchrun_variables()
        names = ('MASTER_ADDR', 'MASTER_PORT', 'RANK', 'LOCAL_RANK', 'WORLD_SIZE')
        assert [os.environ[name] for name in names] == ['a1', '23456', '3', '1', '4']


def test_a_variable_is_answered_with_what_it_was_used_for():
    cfg = Config(
        dict(
            data_root='a/',
            train_dataloader=dict(dataset=dict(data_root='a/')),
            val_dataloader=dict(dataset=dict(data_root='a/')),
        )
    )
    used = r'change train_dataloader\.dataset\.data_root or val_dataloader\.dataset\.data_root'
    with pytest.raises(ConfigError, match=used):
        check_overrides(cfg, {'data_root': '.'})
    for key in ('compile', 'sync_bn', 'model_wrapper_cfg.broadcast_buffers'):
        check_overrides(cfg, {key: True})


def test_a_hook_to_be_left_out_is_there():
    cfg = Config(dict(default_hooks=dict(preemption=dict(type='PreemptionHook'))))
    for name in ('preemption', 'preemption.interval', 'timer'):  # mmengine has the last
        check_overrides(cfg, {f'default_hooks.{name}': None})
    with pytest.raises(ConfigError, match='preemtion; did you mean preemption'):
        check_overrides(cfg, {'default_hooks.preemtion': None})
