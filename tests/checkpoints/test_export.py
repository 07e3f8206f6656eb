import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer
from mmdet.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS
from mmdet.utils import register_all_modules
from mmengine.config import Config, ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.optim import DefaultOptimWrapperConstructor

from mmdet_sssd import ConfigError
from mmdet_sssd.checkpoints import export_student, stock_config
from mmdet_sssd.commands import shapes as drawing
from mmdet_sssd.datasets import with_unlabelled
from mmdet_sssd.optimizers import StudentNames

from ..command import run_command
from ..small_runner import LOAD_IMAGE, PACK, STRETCH, shapes_dataset
from ..stock_detectors import NUM_CLASSES
from ..stock_detectors import stock_config as detector_config

ROOT = Path(__file__).parents[2]
BIAS = 'bbox_head.retina_reg.bias'
DETECTORS = ('retinanet', 'mask_rcnn', 'deformable_detr')
CONFIG = """
_base_ = ['mmdet::_base_/default_runtime.py', '{root}/configs/_base_/distiller.py']
from mmdet_sssd.recipes import paper
default_hooks = paper.hooks
load_from = 'somewhere.pth'
resume = True
work_dir = 'work_dirs/somewhere'
"""


def training_config(name, shapes) -> Config:
    """The config of a small detector's distillation, whose detections are many."""
    cfg = Config.fromstring(CONFIG.format(root=ROOT), '.py')
    dataset = shapes_dataset(shapes, 'val', [LOAD_IMAGE, STRETCH, PACK])
    dataset['metainfo'] = dict(classes=drawing.CLASSES[:NUM_CLASSES])
    sampler = dict(type='DefaultSampler', shuffle=False)
    for stage in ('val', 'test'):
        cfg[f'{stage}_dataloader'] = dict(batch_size=1, sampler=sampler, dataset=dataset)
        cfg[f'{stage}_evaluator'] = dict(
            type='CocoMetric', ann_file=f'{shapes}/annotations/val.json', metric='bbox'
        )
        cfg[f'{stage}_cfg'] = dict()
    student = detector_config(name)
    for test_cfg in (student.test_cfg, student.test_cfg.get('rcnn', {})):
        if 'score_thr' in test_cfg:
            test_cfg.score_thr = 0.0
    cfg.model = dict(type='SSSDDistiller', student=student)
    return cfg


def save_checkpoint(path, cfg) -> Path:
    """A checkpoint with what mmengine's have in the middle of a run."""
    torch.manual_seed(0)
    model = MODELS.build(copy.deepcopy(cfg.model))
    model.init_weights()
    meta = dict(
        cfg=cfg.pretty_text,
        epoch=1,
        iter=np.int64(7),
        dataset_meta=dict(
            classes=tuple('abc'), palette=np.arange(9).reshape(3, 3), x=ConfigDict(y=[1])
        ),
    )
    checkpoint = dict(
        meta=meta,
        state_dict=model.state_dict(),
        message_hub=dict(log_scalars={'train/loss': HistoryBuffer([1.0], [1])}),
        optimizer=dict(state={0: dict(momentum_buffer=torch.ones(3))}),
        random_state=torch.get_rng_state(),
    )
    torch.save(checkpoint, path)
    return path


@pytest.fixture(scope='module')
def in_stock_mmdet(shapes, tmp_path_factory):
    """What stock mmdet makes of each exported detector, and what the distiller predicts."""
    register_all_modules()
    folder = tmp_path_factory.mktemp('export')
    images = sorted(str(path) for path in (shapes / 'val').iterdir())
    expected, pairs = {}, []
    for name in DETECTORS:
        cfg = training_config(name, shapes)
        checkpoint = save_checkpoint(folder / f'{name}.pth', cfg)
        distiller = DetInferencer(cfg, str(checkpoint), device='cpu', show_progress=False)
        assert type(distiller.model).__name__ == 'SSSDDistiller'
        expected[name] = distiller(images, return_datasamples=True)['predictions']
        weights, config = export_student(checkpoint, folder / 'out')
        pairs += [config, weights]
    command = [sys.executable, ROOT / 'tests/stock_process.py', shapes / 'val', folder / 'out.pkl']
    subprocess.run(
        [*command, *pairs],
        env={**os.environ, 'PYTHONWARNINGS': 'ignore'},
        cwd=folder,
        check=True,
    )
    return pickle.loads((folder / 'out.pkl').read_bytes()), expected


def assert_equal_instances(ours, expected, fields):
    for field in fields:
        x, y = (torch.as_tensor(instances[field]) for instances in (ours, expected))
        assert torch.equal(x, y), field


@pytest.mark.parametrize('name', DETECTORS)
def test_stock_mmdet_without_this_package_predicts_what_the_distiller_does(in_stock_mmdet, name):
    results, expected = (x[name] for x in in_stock_mmdet)
    instances = [sample.pred_instances for sample in expected]
    assert sum(map(len, instances)) >= 20
    fields = list(instances[0].keys())
    assert ('masks' in fields) == (name == 'mask_rcnn')
    for key in ('predictions', 'predictions_of_the_checkpoint_alone'):
        for ours, theirs in zip(results[key], instances, strict=True):
            assert_equal_instances(ours.pred_instances, theirs, fields)
    for ours, theirs in zip(results['tested'], instances, strict=True):
        assert_equal_instances(ours['pred_instances'], theirs, ('bboxes', 'scores', 'labels'))


def test_checkpoint_has_mmdet_s_publish_format(in_stock_mmdet):
    result = in_stock_mmdet[0]['retinanet']
    assert result['keys'] == ['meta', 'state_dict']
    meta = result['meta']
    assert meta['dataset_meta'] == dict(
        classes=tuple('abc'), palette=[[0, 1, 2], [3, 4, 5], [6, 7, 8]], x=dict(y=[1])
    )
    assert (meta['epoch'], meta['iter'], type(meta['iter'])) == (1, 7, int)


@pytest.fixture(scope='module')
def run(shapes, tmp_path_factory):
    """A training checkpoint and its config."""
    register_all_modules()
    cfg = training_config('retinanet', shapes)
    return save_checkpoint(tmp_path_factory.mktemp('run') / 'epoch_1.pth', cfg), cfg


def config_of(run):
    path = run[0].with_suffix('.py')
    run[1].dump(path)
    return path


def test_weights_keep_the_versions_of_their_modules(run, tmp_path):
    weights, _ = export_student(run[0], tmp_path)
    state_dict = torch.load(weights, weights_only=True)['state_dict']
    student = MODELS.build(detector_config('retinanet'))
    assert state_dict._metadata == student.state_dict()._metadata
    assert state_dict.keys() == student.state_dict().keys()


@pytest.mark.parametrize('method', ['sssd', 'sad'])
def test_exported_config_equals_the_stock_config(shapes, monkeypatch, method):
    monkeypatch.setenv('SSSD_TEACHER_CHECKPOINT', 'teacher.pth')
    monkeypatch.setenv('SSSD_DATA_ROOT', str(shapes))
    demo = ROOT / 'configs/demo'
    cfg = Config.fromfile(demo / f'{method}_retinanet_r18-small_own-data.py')
    cfg.update(work_dir='work_dirs/a', launcher='pytorch', load_from='b.pth', resume=True)
    stock = Config.fromfile(demo / 'retinanet_r18-small_own-data.py')
    before = copy.deepcopy(cfg.to_dict())
    assert stock_config(cfg).to_dict() == stock.to_dict()
    assert cfg.to_dict() == before


@pytest.mark.parametrize(
    ('settings', 'expected'),
    [
        (dict(custom_hooks=[dict(type='mmdet.DistillPhasesHook')]), {}),
        (dict(custom_hooks=[]), dict(custom_hooks=[])),
        (
            dict(custom_hooks=[dict(type='EMAHook'), dict(type='RandomStateHook')]),
            dict(custom_hooks=[dict(type='EMAHook')]),
        ),
        (dict(x=dict(type='mmdet_sssd.hooks.distill_phases_hook.DistillPhasesHook')), {}),
        (dict(custom_imports=dict(imports='mmdet_sssd')), {}),
        (
            dict(custom_imports=dict(imports=['mmdet_sssd.hooks', 'json'])),
            dict(custom_imports=dict(imports=['json'])),
        ),
        (
            dict(
                optim_wrapper=dict(custom_keys={'student': 1, 'student.a': 2, 'b': 3, 'terms.c': 4})
            ),
            dict(optim_wrapper=dict(custom_keys={'': 1, 'a': 2, 'b': 3})),
        ),
        (
            dict(optim_wrapper=dict(constructor='OwnConstructorForStudents')),
            dict(optim_wrapper=dict(constructor='OwnConstructor')),
        ),
    ],
)
def test_settings_of_this_package_leave_the_config(settings, expected):
    cfg = Config(dict(model=dict(type='SSSDDistiller', student=dict(type='ATSS')), **settings))
    stock = stock_config(cfg).to_dict()
    assert stock.pop('model') == dict(type='ATSS')
    assert stock == dict(expected, load_from=None, resume=False)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class OwnConstructor(DefaultOptimWrapperConstructor):
    pass


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class OwnConstructorForStudents(StudentNames, OwnConstructor):
    pass


EXTENSION = """
from mmdet.registry import HOOKS, MODELS
from mmengine.hooks import Hook
from mmdet_sssd.checks import CheckDatasetHook
from mmdet_sssd.models.losses import SSIMLoss

@MODELS.register_module()
class {name}Loss(SSIMLoss):
    pass

@HOOKS.register_module()
class {name}Hook(Hook):
    pass

@HOOKS.register_module()
class {name}CheckHook(CheckDatasetHook):
    pass
"""


@pytest.mark.parametrize('name', ['Gone', 'Kept'])
def test_extensions_that_the_stock_config_uses_stay_imported(shapes, tmp_path, monkeypatch, name):
    """One of a loss and a hook of ours: stock mmdet needs it no more; of a hook of its own: it does."""
    (tmp_path / f'{name}_losses.py').write_text(EXTENSION.format(name=name))
    (tmp_path / f'{name}_all.py').write_text(f'from {name}_losses import *')
    monkeypatch.syspath_prepend(tmp_path)
    cfg = training_config('retinanet', shapes)
    imports = ['mmdet_sssd', f'{name}_losses', f'{name}_all', 'json']
    cfg.custom_imports = dict(imports=imports, allow_failed_imports=False)
    cfg = Config.fromstring(cfg.pretty_text, '.py')
    cfg.model.distill_loss = dict(type=f'{name}Loss')
    cfg.custom_hooks = [dict(type=f'mmdet.{name}CheckHook')]
    if name == 'Kept':
        cfg.custom_hooks.append(dict(type='KeptHook'))
    save_checkpoint(tmp_path / 'epoch_1.pth', cfg)
    assert run_command('export', tmp_path / 'epoch_1.pth', '--out', tmp_path / 'out')[0] == 0
    code = 'import sys; from mmengine.config import Config; Config.fromfile(sys.argv[1])'
    read = [sys.executable, '-c', code, tmp_path / 'out/epoch_1.py']
    stock = subprocess.run(read, cwd=tmp_path / 'out', capture_output=True)
    assert (stock.returncode == 0) == (name == 'Gone'), stock.stderr
    exported = stock_config(cfg)
    assert exported.get('custom_hooks') == ([dict(type='KeptHook')] if name == 'Kept' else None)
    kept = imports[1:] if name == 'Kept' else ['json']
    assert exported.custom_imports == dict(imports=kept, allow_failed_imports=False)


def test_a_module_of_what_others_name_by_default_stays_imported(shapes, tmp_path, monkeypatch):
    code = 'from mmdet.registry import MODELS\n\n@MODELS.register_module()\nclass OfOthers: pass\n'
    (tmp_path / 'of_others.py').write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    cfg = training_config('retinanet', shapes)
    cfg.custom_imports = dict(imports=['mmdet_sssd', 'of_others'], allow_failed_imports=False)
    exported = stock_config(Config.fromstring(cfg.pretty_text, '.py'))
    assert exported.custom_imports.imports == ['of_others']


@pytest.mark.parametrize('of_branches', [False, True])
def test_the_innermost_data_preprocessor_is_the_exported_student_s(of_branches):
    cfg = Config(dict(model=dict(type='SemiDistiller', student=dict(type='ATSS'))))
    for mean, owner in enumerate((cfg, cfg.model, cfg.model.student)):
        inner = dict(type='DetDataPreprocessor', mean=[mean])
        outer = dict(type='MultiBranchDataPreprocessor', data_preprocessor=inner)
        owner.data_preprocessor = outer if of_branches else inner
        assert stock_config(cfg).model == dict(type='ATSS', data_preprocessor=inner)


def test_a_loader_of_two_kinds_of_images_reads_the_labelled_ones():
    labelled = dict(type='CocoDataset', ann_file='a.json')
    sampler = dict(type='MultiSourceSampler', batch_size=4, source_ratio=[1, 1])
    loader = dict(dataset=with_unlabelled(labelled, 'b.json'), sampler=sampler)
    model = dict(type='SemiDistiller', student=dict(type='ATSS'))
    exported = stock_config(Config(dict(model=model, train_dataloader=loader))).train_dataloader
    assert exported == dict(dataset=labelled, sampler=dict(type='InfiniteSampler', shuffle=True))


def resaved(run, path, change) -> Path:
    """A copy of the training checkpoint with something changed."""
    checkpoint = torch.load(run[0], weights_only=False)
    change(checkpoint)
    torch.save(checkpoint, path)
    return path


def without_student(checkpoint):
    weights = checkpoint['state_dict']
    checkpoint['state_dict'] = {k[8:]: v for k, v in weights.items() if k.startswith('student.')}


def with_config(text):
    return lambda checkpoint: checkpoint['meta'].update(cfg=text)


def with_weight(name, value):
    return lambda checkpoint: checkpoint['state_dict'].update({f'student.{name}': value})


def without_weight(checkpoint):
    del checkpoint['state_dict'][f'student.{BIAS}']


@pytest.mark.parametrize(
    ('change', 'named'),
    [
        (without_student, ['c.pth', 'student.*', 'backbone, bbox_head, neck']),
        (with_config(None), ['c.pth', '--config']),
        (with_config("custom_imports = dict(imports=['no_such_'])"), ['c.pth', 'no_such_']),
        (with_config('x = 1'), ['model.type', 'None']),
        (with_config("model = dict(type='RetinaNet')"), ['model.type', 'RetinaNet']),
        (without_weight, [BIAS]),
        (with_weight('bbox_head.other', torch.zeros(3)), ['bbox_head.other']),
        (with_weight(BIAS, torch.full((36,), torch.nan)), [BIAS]),
    ],
)
def test_checkpoints_that_cannot_be_exported_are_named(run, tmp_path, change, named):
    checkpoint = resaved(run, tmp_path / 'c.pth', change)
    with pytest.raises(ConfigError) as error:
        export_student(checkpoint, tmp_path / 'out')
    assert all(x in str(error.value) for x in named), error.value
    assert not (tmp_path / 'out').exists()


def test_a_config_that_is_given_is_the_one_that_counts(run, shapes, tmp_path):
    checkpoint = resaved(run, tmp_path / 'c.pth', with_config(None))
    _, config = export_student(checkpoint, tmp_path, config_of(run))
    assert Config.fromfile(config).model.type == 'RetinaNet'
    other = tmp_path / 'other.py'
    training_config('faster_rcnn', shapes).dump(other)
    with pytest.raises(ConfigError, match=r'a FasterRCNN: neck\..* in it; .* --config'):
        export_student(checkpoint, tmp_path, other)


def test_a_folder_that_cannot_be_written_to_is_named(run, tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(ConfigError, match=r'file/out cannot be written to \(.*give another folder'):
        export_student(run[0], tmp_path / 'file' / 'out')
