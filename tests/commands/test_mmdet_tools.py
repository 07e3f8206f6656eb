"""What a user sees who got something wrong: the message alone, and no traceback of ours."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from mmdet_sssd.commands.mmdet_tools import _speak_as_torchrun, user_errors_last

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / 'configs/demo/sssd_retinanet_r18-small_own-data.py'


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A data set of one image without a file, and the environment that points configs to it."""
    (tmp_path / 'annotations').mkdir()
    (tmp_path / 'images').mkdir()
    content = {
        'images': [{'id': 1, 'file_name': 'a.jpg', 'height': 64, 'width': 64}],
        'annotations': [
            {
                'id': 1,
                'image_id': 1,
                'category_id': 1,
                'bbox': [1, 1, 9, 9],
                'area': 81,
                'iscrowd': 0,
            }
        ],
        'categories': [{'id': 1, 'name': 'cat'}],
    }
    for split in ('train', 'val'):
        (tmp_path / 'annotations' / f'{split}.json').write_text(json.dumps(content))
    monkeypatch.setenv('SSSD_DATA_ROOT', str(tmp_path))
    return tmp_path


def error_of(monkeypatch, data, *args, tool='train'):
    """Run a tool in this process and give the message that it ends with."""
    command = [tool, str(CONFIG), *map(str, args), '--work-dir', str(data / 'work')]
    monkeypatch.setattr(sys, 'argv', command)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / 'tools' / f'{tool}.py'), run_name='__main__')
    return end.value.code


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            ['model.distill_loss.dim=pixel'],
            "error: model.distill_loss.dim is 'pixel'; accepted: spatial, channel, all",
        ),
        (['model.distill_coef=-1'], 'error: model.distill_coef is -1; accepted: a number >= 0'),
        (
            ['model.bbox_head.num_classes=2'],
            "error: bbox_head is no setting of SSSDDistiller; one of the detector's is written "
            'model.student.bbox_head. Accepted: student, teacher, ',
        ),
        (
            ["custom_imports.imports=['json']"],
            "error: custom_imports.imports is ['json'], without 'mmdet_sssd', which "
            'model.type=SSSDDistiller needs',
        ),
        (
            ['default_hooks.distill_coef.policy=cosine'],
            "error: AdaptiveDistillCoefHook.policy is 'cosine'; accepted: step, inverse_lr, constant",
        ),
        (
            ['default_hooks.distill_coef.polcy=constant'],
            'error: polcy is no setting of AdaptiveDistillCoefHook. Accepted: policy, factor, ',
        ),
        (
            ['model.distill_loss.dimm=channel'],
            "error: model.distill_loss: got an unexpected keyword argument 'dimm'; JSDistanceLoss "
            'accepts: dim, tau',
        ),
        (
            ['train_dataloader.dataset.ann_file=none.json'],
            'error: train_dataloader.dataset.ann_file: there is no {data}/none.json',
        ),
        (
            ["train_dataloader.dataset.metainfo.classes=('dog',)"],
            'error: train_dataloader.dataset.metainfo.classes: none of dog is a category in '
            '{data}/annotations/train.json, which has: cat',
        ),
    ],
)
def test_bad_settings_end_with_a_message(monkeypatch, data, options, message):
    found = error_of(monkeypatch, data, '--cfg-options', *options)
    assert found.startswith(message.format(data=data))
    assert '\n' not in found


def test_missing_data_of_one_s_own_names_the_variable(monkeypatch, data):
    monkeypatch.setenv('SSSD_DATA_ROOT', '/nowhere')
    found = error_of(monkeypatch, data)
    assert 'in the environment: /nowhere/annotations/train.json (looked for' in found
    assert 'SSSD_DATA_ROOT' in found


def test_a_missing_checkpoint_is_named(monkeypatch, data):
    found = error_of(monkeypatch, data, data / 'none.pth', tool='test')
    assert found == f'error: checkpoint {data}/none.pth cannot be found'


def test_broken_checkpoints_are_named_when_a_run_is_resumed(monkeypatch, data):
    (data / 'work').mkdir()
    (data / 'work/epoch_1.pth').write_bytes(b'PK')
    found = error_of(monkeypatch, data, '--resume')
    assert found.startswith(
        f'error: --resume: there is no {data}/work/last_checkpoint, and there is'
    )
    assert f'not whole: {data}/work/epoch_1.pth' in found


def test_a_missing_config_is_named(monkeypatch, data):
    monkeypatch.setattr(sys, 'argv', ['train', 'no_such_config.py'])
    with pytest.raises(SystemExit, match=r'^error: .*no_such_config\.py'):
        runpy.run_path(str(ROOT / 'tools/train.py'), run_name='__main__')


def test_the_message_is_the_process_s_last_line_and_there_is_no_traceback(data):
    result = subprocess.run(
        [sys.executable, 'tools/train.py', CONFIG, '--cfg-options', 'model.distill_coef=-1'],
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith('error: model.distill_coef is -1; accepted')
    assert 'Traceback' not in result.stderr + result.stdout


def test_errors_that_are_not_the_user_s_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), user_errors_last():
        1 / 0  # noqa: B018


def test_a_task_of_slurm_finds_the_others_as_torchrun_s_processes_do(tmp_path):
    script = '#!/bin/sh\n[ "$*" = "show hostnames a[1-2]" ] && echo a1; echo a2'
    (tmp_path / 'scontrol').write_text(script)
    (tmp_path / 'scontrol').chmod(0o755)
    task = dict(SLURM_NODELIST='a[1-2]', SLURM_PROCID='3', SLURM_LOCALID='1', SLURM_NTASKS='4')
    given = {'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'MASTER_PORT': '23456', **task}
    with patch.dict(os.environ, given):
        os.environ.pop('MASTER_ADDR', None)
        _speak_as_torchrun()
        names = ('MASTER_ADDR', 'MASTER_PORT', 'RANK', 'LOCAL_RANK', 'WORLD_SIZE')
        assert [os.environ[name] for name in names] == ['a1', '23456', '3', '1', '4']
