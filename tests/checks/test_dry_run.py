"""Rehearsals of small real runs."""

import math
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmdet_sssd import ConfigError
from mmdet_sssd.checks.checkpoints import CheckTrainHook
from mmdet_sssd.checks.dry_run import rehearse as rehearse_run
from mmdet_sssd.commands.training import build_runner

from ..command import error_of, run_command
from ..small_runner import draw_shapes, shapes_environment

ROOT = Path(__file__).parents[2]
DISTILLED, SEMI, STOCK = (
    ROOT / f'configs/demo/{x}own-data.py'
    for x in ('sssd_retinanet_r18-small_', 'sad_retinanet_r18-small_semi-', 'retinanet_r18-small_')
)
HEAD_LOSS = 'mmdet.models.dense_heads.RetinaHead.loss'


@pytest.fixture
def shapes(tmp_path, monkeypatch):
    """The folder of a drawn data set, also the current one, and the environment that says where."""
    for name, value in shapes_environment(draw_shapes(tmp_path), epochs=24).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rehearse(config, folder, capsys, **options) -> dict[str, str]:
    """Run a dry run and give its summary, by row."""
    cfg = Config.fromfile(config)
    cfg.work_dir = str(folder / 'work')
    cfg.experiment_name = f'{folder.name}_{len(options)}'  # runners of one name share their logs
    cfg.merge_from_dict(options)
    rehearse_run(cfg, partial(build_runner, hook=CheckTrainHook()))
    assert cfg.train_dataloader.num_workers == 2, "the caller's config was changed"
    _, *lines = capsys.readouterr().out.rpartition('dry run: this config trains')[2].splitlines()
    return dict(re.split(r' {2,}', line.strip(), maxsplit=1) for line in lines)


def test_a_distilled_run_is_rehearsed_and_leaves_nothing(shapes, capsys):
    rows = rehearse(DISTILLED, shapes, capsys)
    assert rows['model'] == 'SSSDDistiller around RetinaNet'
    parts = r'student 3\.\d M, teacher \d\.\d M, term distill 0\.1 M'
    assert re.fullmatch(parts, rows['parameters'])
    assert rows['classes'] == '5: circle, square, triangle, star, cross'
    assert rows['images'] == '8 to train on, 4 to validate on'
    losses = dict(x.split() for x in rows['losses'].split(', '))
    assert {'loss', 'loss_cls', 'teacher.loss_cls', 'loss_distill'} < losses.keys()
    total, *values = map(float, losses.values())
    assert total == pytest.approx(sum(values), rel=1e-3)
    assert re.fullmatch(r'\d+\.\d\d s for 4 images', rows['first step'])
    assert re.fullmatch(r'\d+ predictions in a batch', rows['validation'])
    assert {x.name for x in shapes.iterdir()} == {'train', 'val', 'annotations'}


def test_a_hook_set_to_none_is_left_out(shapes, capsys):
    rows = rehearse(DISTILLED, shapes, capsys, **{'default_hooks.phases': None})
    assert 'loss_distill' in rows['losses']


def test_a_stock_run_is_rehearsed_and_needs_no_validation(shapes, capsys):
    options = dict(
        val_dataloader=None,
        val_cfg=None,
        val_evaluator=None,
        train_cfg=dict(_delete_=True, type='IterBasedTrainLoop', max_iters=9),
    )
    rows = rehearse(STOCK, shapes, capsys, **options)
    assert rows['model'] == 'RetinaNet'
    assert re.fullmatch(r'3\.\d M', rows['parameters'])
    assert rows['images'] == '8 to train on'
    assert 'validation' not in rows


def test_a_run_on_labelled_and_unlabelled_images_is_rehearsed(shapes, capsys, monkeypatch):
    for name, value in dict(ANN='annotations/val.json', IMG='val').items():
        monkeypatch.setenv(f'SSSD_UNLABELLED_{name}', value)
    monkeypatch.setenv('SSSD_TEACHER_CHECKPOINT', 'overridden below')
    rows = rehearse(SEMI, shapes, capsys, **{'model.teachers.pretrained.checkpoint': None})
    assert rows['model'] == 'SemiDistiller around RetinaNet'
    assert rows['images'].endswith(' to train on, 4 to validate on')
    assert 'unsup.loss_adl' in rows['losses']
    assert rows['first step'].endswith('for 4 images')


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('model.bbox_head.num_classes', 1, r'label \d, but the model has 1'),
        ('val_evaluator.metric', ['bbox', 'segm'], r"^val_evaluator\.metric has 'segm', but the"),
    ],
)
def test_what_does_not_fit_the_detector_is_refused(shapes, capsys, key, value, message):
    with pytest.raises(ConfigError, match=message):
        rehearse(STOCK, shapes, capsys, **{key: value})


def infinite_loss(*_):
    return dict(loss_cls=torch.tensor(math.nan, requires_grad=True))


def infinite_slope(head, *_):
    return dict(loss_cls=(head.retina_cls.weight.sum() * 0).sqrt())


def failing(*_):
    raise RuntimeError('out of memory\nsecond line')


@pytest.mark.parametrize(
    ('loss', 'message'),
    [
        (infinite_loss, r'loss_cls is nan.*its images \(.*\d\.png, .*\d\.png\)'),
        (infinite_slope, r'the gradient of bbox_head\.retina_cls\.weight is not finite'),
        (failing, r'^the training step failed \(RuntimeError: out of memory\); --debug'),
    ],
)
def test_what_goes_wrong_in_the_training_step_is_named(shapes, capsys, monkeypatch, loss, message):
    monkeypatch.setattr(HEAD_LOSS, loss)
    with pytest.raises(ConfigError, match=message):
        rehearse(STOCK, shapes, capsys)


def test_weights_are_loaded_and_a_resumed_run_has_to_have_an_end(shapes, capsys):
    with pytest.raises(FileNotFoundError, match=r'none\.pth'):
        rehearse(STOCK, shapes, capsys, load_from=str(shapes / 'none.pth'))
    rows = rehearse(STOCK, shapes, capsys, resume=True)  # from nothing, as mmengine has it
    assert 'losses' in rows
    cfg = Config.fromfile(STOCK)
    cfg.merge_from_dict(dict(work_dir=str(shapes / 'work'), train_cfg=dict(max_epochs=1)))
    cfg.update(val_dataloader=None, val_cfg=None, val_evaluator=None)
    cfg.default_hooks.checkpoint.pop('save_best')
    cfg.train_dataloader.update(num_workers=0, persistent_workers=False)
    Runner.from_cfg(cfg).train()
    files = set((shapes / 'work').rglob('*'))
    with pytest.raises(ConfigError, match=r'to resume, at epoch 1 and'):
        rehearse(STOCK, shapes, capsys, resume=True, **{'train_cfg.max_epochs': 1})
    (shapes / 'work/last_checkpoint').write_text('')  # as a killed run may leave it
    rehearse(STOCK, shapes, capsys, resume=True, **{'train_cfg.max_epochs': 2})
    assert set((shapes / 'work').rglob('*')) == files


@pytest.mark.parametrize('command', [('dry-run',), ('train', '--dry-run', '--launcher', 'none')])
def test_the_output_is_ours_alone(shapes, capfd, command):
    """Not a line for each frozen parameter, and none by pycocotools."""
    frozen = ['model.backbone.frozen_stages=1', 'optim_wrapper.paramwise_cfg.norm_decay_mult=0']
    assert run_command(*command, STOCK, *frozen) == (0, '')
    warning, out = capfd.readouterr().out.split('\n', 1)
    assert warning.startswith('warning: model.backbone.frozen_stages is 1')
    assert out.startswith('dry run: this config trains')
    assert all(line.startswith('  ') for line in out.splitlines()[1:])
    assert not (shapes / 'work_dirs').exists()


def test_a_broken_image_outside_the_first_batches_is_found(shapes):
    image = shapes / 'val/000004.png'
    image.write_bytes(image.read_bytes()[:40])
    found = error_of('dry-run', STOCK)
    assert found.startswith('1 of 4 images cannot be loaded, the first is')
    assert 'val/000004.png (' in found


def test_missing_test_data_do_not_stop_a_training_run(shapes, capsys, monkeypatch):
    monkeypatch.setenv('SSSD_TEST_ANN', 'annotations/tets.json')
    monkeypatch.setenv('SSSD_TEST_IMG', 'val')
    assert run_command('dry-run', STOCK) == (0, '')
    out = capsys.readouterr().out
    assert 'warning: test_dataloader.dataset.ann_file: there is no' in out
    assert 'dry run: this config trains, with 1 warning' in out


def test_warnings_are_counted_in_the_summary(shapes, capsys):
    both = [f'{x}_dataloader.dataset.ann_file=annotations/train.json' for x in ('train', 'val')]
    both += [f'val_evaluator.ann_file={shapes}/annotations/train.json']
    both += ['val_dataloader.dataset.data_prefix.img=train']
    assert run_command('dry-run', STOCK, *both)[0] == 0
    assert 'dry run: this config trains, with 1 warning (above)\n' in capsys.readouterr().out
