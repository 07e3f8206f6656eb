"""Rehearsals of small real runs."""

import json
import math
import re
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmdet_sssd import ConfigError
from mmdet_sssd.checks.checkpoints import CheckResumeHook
from mmdet_sssd.checks.dry_run import rehearse as rehearse_run
from mmdet_sssd.commands.training import build_runner

from ..command import error_of, run_command

ROOT = Path(__file__).parents[2]
DISTILLED, SEMI, STOCK = (
    ROOT / f'configs/demo/{x}own-data.py'
    for x in ('sssd_retinanet_r18-small_', 'sad_retinanet_r18-small_semi-', 'retinanet_r18-small_')
)
NUM_IMAGES = 4


@pytest.fixture
def shapes(tmp_path, monkeypatch):
    """A data set of noise with a white square in each image, and the environment that says where."""
    (tmp_path / 'images').mkdir()
    (tmp_path / 'annotations').mkdir()
    rng = np.random.default_rng(0)
    content = {'images': [], 'annotations': [], 'categories': [{'id': 1, 'name': 'square'}]}
    for index in range(NUM_IMAGES):
        image = rng.integers(0, 128, (64, 64, 3), dtype=np.uint8)
        image[16:40, 16:40] = 255
        cv2.imwrite(str(tmp_path / f'images/{index}.png'), image)
        content['images'].append(
            {'id': index, 'file_name': f'{index}.png', 'height': 64, 'width': 64}
        )
        content['annotations'].append(
            {
                'id': index,
                'image_id': index,
                'category_id': 1,
                'bbox': [16, 16, 24, 24],
                'area': 576,
                'iscrowd': 0,
            }
        )
    for split in ('train', 'val'):
        (tmp_path / f'annotations/{split}.json').write_text(json.dumps(content))
    monkeypatch.setenv('SSSD_DATA_ROOT', str(tmp_path))
    monkeypatch.setenv('SSSD_IMAGE_SCALE', '64x64')
    return tmp_path


def rehearse(config, folder, capsys, **options) -> dict[str, str]:
    """Run a dry run and give its summary, by row."""
    cfg = Config.fromfile(config)
    cfg.work_dir = str(folder / 'work')
    cfg.experiment_name = f'{folder.name}_{len(options)}'  # runners of one name share their logs
    cfg.merge_from_dict(options)
    rehearse_run(cfg, partial(build_runner, hook=CheckResumeHook()))
    assert cfg.train_dataloader.num_workers == 2, "the caller's config was changed"
    _, *lines = capsys.readouterr().out.rpartition('dry run: this config trains')[2].splitlines()
    return dict(re.split(r' {2,}', line.strip(), maxsplit=1) for line in lines)


def test_a_distilled_run_is_rehearsed_and_leaves_nothing(shapes, capsys):
    rows = rehearse(DISTILLED, shapes, capsys)
    assert rows['model'] == 'SSSDDistiller around RetinaNet'
    parts = r'student 3\.\d M, teacher teacher \d\.\d M, term distill 0\.1 M'
    assert re.fullmatch(parts, rows['parameters'])
    assert rows['classes'] == '1: square'
    assert rows['images'] == f'{NUM_IMAGES} to train on, {NUM_IMAGES} to validate on'
    names = (
        'loss',
        'loss_cls',
        'loss_bbox',
        'teacher.loss_cls',
        'teacher.loss_bbox',
        'loss_distill',
    )
    losses = dict(x.split() for x in rows['losses'].split(', '))
    assert tuple(losses) == names
    values = [float(x) for x in losses.values()]
    assert values[0] == pytest.approx(sum(values[1:]), rel=1e-3)
    assert re.fullmatch(r'\d+\.\d\d s for 2 images', rows['first step'])
    assert re.fullmatch(r'\d+ predictions in a batch', rows['validation'])
    assert {x.name for x in shapes.iterdir()} == {'images', 'annotations'}


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
    assert rows['images'] == f'{NUM_IMAGES} to train on'
    assert 'validation' not in rows


def test_a_run_on_labelled_and_unlabelled_images_is_rehearsed(shapes, capsys, monkeypatch):
    content = json.loads((shapes / 'annotations/train.json').read_text())
    unlabelled = {key: content[key] for key in ('images', 'categories')}
    (shapes / 'annotations/unlabelled.json').write_text(json.dumps(unlabelled))
    monkeypatch.setenv('SSSD_TEACHER_CHECKPOINT', 'overridden below')
    rows = rehearse(SEMI, shapes, capsys, **{'model.teachers.pretrained.checkpoint': None})
    assert rows['model'] == 'SemiDistiller around RetinaNet'
    assert rows['images'] == f'{2 * NUM_IMAGES} to train on, {NUM_IMAGES} to validate on'
    assert 'unsup.loss_adl' in rows['losses']
    assert rows['first step'].endswith('for 2 images')


def test_labels_of_a_stock_run_are_checked(shapes, capsys):
    content = json.loads((shapes / 'annotations/train.json').read_text())
    content['categories'].append({'id': 2, 'name': 'circle'})
    content['annotations'][1]['category_id'] = 2
    (shapes / 'annotations/train.json').write_text(json.dumps(content))
    with pytest.raises(
        ConfigError, match=r'1\.png has an object with label 1, but the model has 1'
    ):
        rehearse(STOCK, shapes, capsys, **{'model.bbox_head.num_classes': 1})


def test_losses_that_are_not_finite_are_named_with_the_images(shapes, capsys, monkeypatch):
    loss = 'mmdet.models.dense_heads.RetinaHead.loss'
    monkeypatch.setattr(loss, lambda *_: dict(loss_cls=torch.tensor(math.nan, requires_grad=True)))
    with pytest.raises(
        ConfigError,
        match=r'first training step, .*loss_cls is nan.*its images \(.*\d\.png, .*\d\.png\)',
    ):
        rehearse(STOCK, shapes, capsys)


def test_gradients_that_are_not_finite_are_named(shapes, capsys, monkeypatch):
    def loss(head, *_):
        """0, with an infinite slope."""
        return dict(loss_cls=(head.retina_cls.weight.sum() * 0).sqrt())

    monkeypatch.setattr('mmdet.models.dense_heads.RetinaHead.loss', loss)
    with pytest.raises(
        ConfigError, match=r'the gradient of bbox_head\.retina_cls\.weight is not finite'
    ):
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
    rehearse(STOCK, shapes, capsys, resume=True, **{'train_cfg.max_epochs': 2})
    with pytest.raises(ConfigError, match=r'to resume, at epoch 1 and'):
        rehearse(STOCK, shapes, capsys, resume=True, **{'train_cfg.max_epochs': 1})
    (shapes / 'work/last_checkpoint').write_text('')  # as a killed run may leave it
    rehearse(STOCK, shapes, capsys, resume=True, **{'train_cfg.max_epochs': 2})
    assert set((shapes / 'work').rglob('*')) == files


def test_masks_that_nothing_predicts_are_not_evaluated(shapes, capsys):
    with pytest.raises(ConfigError, match=r"^val_evaluator\.metric has 'segm', but the detector"):
        rehearse(STOCK, shapes, capsys, **{'val_evaluator.metric': ['bbox', 'segm']})


def test_an_error_of_others_names_the_stage(shapes, capsys, monkeypatch):
    def fail(*_args, **_kwargs):
        raise RuntimeError('out of memory\nsecond line')

    monkeypatch.setattr('mmdet.models.dense_heads.RetinaHead.loss', fail)
    message = r'^the training step failed \(RuntimeError: out of memory\); --debug shows where$'
    with pytest.raises(ConfigError, match=message):
        rehearse(STOCK, shapes, capsys)


@pytest.mark.parametrize('command', [('dry-run',), ('train', '--dry-run', '--launcher', 'none')])
def test_the_command_ends_well_or_with_the_error(shapes, monkeypatch, capsys, command):
    monkeypatch.chdir(shapes)
    assert run_command(*command, DISTILLED)[0] == 0
    assert 'dry run: this config trains' in capsys.readouterr().out
    assert not (shapes / 'work_dirs').exists()
    (shapes / 'images/0.png').unlink()
    found = error_of(*command, DISTILLED, 'train_dataloader.batch_size=4')
    assert re.match(r'.*0\.png', found)


def test_a_broken_image_outside_the_first_batches_is_found(shapes, monkeypatch):
    monkeypatch.chdir(shapes)
    content = json.loads((shapes / 'annotations/val.json').read_text())
    content['images'][-1]['file_name'] = 'broken.png'
    (shapes / 'annotations/val.json').write_text(json.dumps(content))
    (shapes / 'images/broken.png').write_bytes((shapes / 'images/3.png').read_bytes()[:40])
    found = error_of('dry-run', STOCK)
    assert found.startswith(f'1 of {NUM_IMAGES} images cannot be loaded, the first is {shapes}')
    assert 'images/broken.png (' in found


def test_the_output_is_ours_alone(shapes, monkeypatch, capfd):
    """Not a line for each frozen parameter, and none by pycocotools."""
    monkeypatch.chdir(shapes)
    frozen = ['model.backbone.frozen_stages=1', 'optim_wrapper.paramwise_cfg.norm_decay_mult=0']
    assert run_command('dry-run', STOCK, *frozen) == (0, '')
    out = capfd.readouterr().out
    assert out.startswith('dry run: this config trains')
    assert all(line.startswith('  ') for line in out.splitlines()[1:])


def test_warnings_are_counted_in_the_summary(shapes, monkeypatch, capsys):
    monkeypatch.chdir(shapes)
    both = [f'{x}_dataloader.dataset.ann_file=annotations/train.json' for x in ('train', 'val')]
    evaluator = f'val_evaluator.ann_file={shapes}/annotations/train.json'
    assert run_command('dry-run', STOCK, *both, evaluator)[0] == 0
    assert 'dry run: this config trains, with 1 warnings (above)\n' in capsys.readouterr().out
