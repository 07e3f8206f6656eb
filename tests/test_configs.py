import copy
import functools
import json
import re
import shutil
from pathlib import Path

import mmdet
import modelindex
import pytest
import yaml
from mmdet.registry import MODELS
from mmengine.config import Config

from mmdet_sssd import ConfigError
from mmdet_sssd.config_tree import overrides
from mmdet_sssd.datasets import leaf_configs
from mmdet_sssd.models import Distiller
from mmdet_sssd.models.student import count_classes

from . import quick_configs
from .stock_detectors import shallow_resnets
from .studies.detectors import check_config

ROOT = Path(__file__).parents[1]
STOCK = Path(mmdet.__file__).parent / '.mim/configs'
CONFIGS = sorted(x for x in ROOT.glob('configs/*/*.py') if x.parent.name != '_base_')
ON_COCO = [x for x in CONFIGS if x.stem.endswith('coco')]
LGD = [x for x in ON_COCO if x.parent.name == 'lgd']
SSSD = [x for x in ON_COCO if x.parent.name == 'sssd']
MULTI_SCALE = [x for x in SSSD if '_ms-2x_' in x.stem]
SINGLE_SCALE = [x for x in SSSD if x not in MULTI_SCALE]
SCALES = [(1333, side) for side in (640, 672, 704, 736, 768, 800)]
TAUGHT = [  # by a pretrained teacher
    x for x in ON_COCO if x.stem.startswith(('structural_kd_', 'js_distance_', 'sad_', 'sssd_sad_'))
]
# Of each kind the smallest is built; others differ in the pipeline or the backbone, which is stock's.
BUILT = [x for x in CONFIGS if x not in LGD and not re.search(r'_ms-2x_|_(r|x)101', x.stem)]
LAID_OUT = (  # masks, several terms, two data sets
    'sssd_mask-rcnn_swin-t-p4-w7_fpn_ms-3x_coco',
    'structural_kd_retinanet_r18-small_own-data',
    'sad_retinanet_r18-small_semi-own-data',
)
SGD = dict(type='SGD', momentum=0.9, weight_decay=0.0001)
ADAMW = dict(type='AdamW', lr=0.0001, weight_decay=0.05)
BACKBONES = {  # of which stock config each student has its backbone and data preprocessor
    'retinanet_r101': 'retinanet/retinanet_r101_fpn_1x_coco.py',
    'fcos_r101': 'fcos/fcos_r101-caffe_fpn_gn-head-1x_coco.py',
    'faster-rcnn_r101': 'faster_rcnn/faster-rcnn_r101_fpn_1x_coco.py',
    'x101': 'faster_rcnn/faster-rcnn_x101-32x8d_fpn_ms-3x_coco.py',
}


@pytest.fixture(autouse=True)
def _own_data(tmp_path, monkeypatch):
    """A data set of 40 images and 2 classes, for the configs that read one."""
    content = {
        'images': [{'id': i} for i in range(40)],
        'annotations': [],
        'categories': [{'id': 3, 'name': 'platelet'}, {'id': 9, 'name': 'cell'}],
    }
    (tmp_path / 'annotations').mkdir()
    for name in ('train', 'unlabelled'):
        (tmp_path / f'annotations/{name}.json').write_text(json.dumps(content))
    monkeypatch.setenv('SSSD_DATA_ROOT', str(tmp_path))
    monkeypatch.setenv('SSSD_MAX_EPOCHS', '36')
    monkeypatch.setenv('SSSD_BATCH_SIZE', '8')
    monkeypatch.setenv('SSSD_TEACHER_CHECKPOINT', 'teacher.pth')
    monkeypatch.delenv('SSSD_TEACHER_CONFIG', raising=False)


@functools.cache
def read(path):
    """A config that depends on nothing but its file; to be left as it is."""
    return Config.fromfile(path)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_a_config_survives_being_written_out(path):
    cfg = read(path) if path in ON_COCO else Config.fromfile(path)
    texts = [cfg.pretty_text]
    if path.stem in LAID_OUT:  # as mmengine writes it, other than in the rest of the tests
        texts.append(quick_configs.laid_out.fget(cfg))
    for text in texts:
        assert Config.fromstring(text, '.py').to_dict() == cfg.to_dict()
    if 'Distiller' in cfg.model.type:
        assert cfg.custom_imports.imports == ['mmdet_sssd']
        assert cfg.default_hooks.checkpoint.type == 'SafeCheckpointHook'


@pytest.mark.parametrize('path', BUILT, ids=lambda path: path.stem)
def test_a_model_builds(path):
    cfg = read(path) if path in ON_COCO else Config.fromfile(path)
    with shallow_resnets():
        model = MODELS.build(copy.deepcopy(cfg.model))
    if path.stem.startswith('sssd'):
        neck = model.teachers['teacher'].neck
        assert neck.num_classes == count_classes(model) == (80 if path in ON_COCO else 2)
    if isinstance(model, Distiller) and 'pretrained' in model.teachers:
        assert not any(x.requires_grad for x in model.teachers['pretrained'].parameters())


@pytest.mark.parametrize('path', LGD, ids=lambda path: path.stem)
def test_lgd_differs_from_sssd_in_teacher_loss_and_coefficient_alone(path):
    sssd = ROOT / 'configs/sssd' / path.name.replace('lgd_', 'sssd_')
    loss = dict(type='NormedMSELoss')
    teacher = dict(soft_regions=False, class_vectors=False)
    assert overrides(read(sssd).to_dict(), read(path).to_dict()) == dict(
        model=dict(distill_loss=loss, teacher=teacher),
        default_hooks=dict(distill_coef=dict(policy='constant')),
    )


@pytest.mark.parametrize('path', MULTI_SCALE, ids=lambda path: path.stem)
def test_multi_scale_differs_in_the_pipeline_alone(path):
    single = path.with_name(path.name.replace('_ms-2x_', '_2x_'))
    pipeline = read(path).train_dataloader.dataset.to_dict()['pipeline']
    assert overrides(read(single).to_dict(), read(path).to_dict()) == dict(
        train_dataloader=dict(dataset=dict(pipeline=pipeline))
    )
    assert pipeline[2]['scales'] == SCALES


@pytest.mark.parametrize('path', [x for x in SINGLE_SCALE if '101' in x.stem], ids=lambda x: x.stem)
def test_students_have_stock_backbones(path):
    student = read(path).model.student
    (stock,) = (STOCK / stock for name, stock in BACKBONES.items() if name in path.stem)
    stock = read(stock).model
    assert student.data_preprocessor == {**student.data_preprocessor, **stock.data_preprocessor}
    expected = dict(stock.backbone)
    if '-dcn' in path.stem:
        expected.update(
            dcn=dict(type='DCNv2', deform_groups=1, fallback_on_stride=False),
            stage_with_dcn=(False, True, True, True),
        )
    assert student.backbone == expected


@pytest.mark.parametrize('path', SINGLE_SCALE, ids=lambda path: path.stem)
def test_coco_configs_have_the_papers_settings(path):
    cfg = read(path)
    longer, masks = 'swin' in path.stem, 'mask-rcnn' in path.stem
    assert cfg.model.teacher == dict(
        add_context_box='rcnn' not in path.stem and 'fcos_r50' not in path.stem,
        detach_appearance='rcnn' in path.stem,
        **(dict(use_masks=True) if masks else {}),
    )
    sgd = dict(SGD, lr=0.02 if 'faster-rcnn' in path.stem else 0.01)
    assert cfg.optim_wrapper.optimizer == (ADAMW if longer else sgd)
    assert cfg.optim_wrapper.clip_grad == dict(type='value', clip_value=1.0)
    warm_up, drops = cfg.param_scheduler
    assert (warm_up.end, warm_up.start_factor, warm_up.by_epoch) == (1000, 0.001, False)
    run = 270_000 if longer else 180_000
    assert cfg.train_cfg.max_iters == drops.end == run
    assert cfg.train_dataloader.batch_size == 2  # of 8 processes
    assert drops.milestones == ([210_000, 250_000] if longer else [120_000, 160_000])
    hooks = cfg.default_hooks
    last = 'x101' in path.stem or 'fcos_r101-dcn' in path.stem
    phases = {k: round(v * run, 6) for k, v in hooks.phases.items() if k != 'type'}
    expected = dict(detach_student=30_000, freeze_backbone=20_000)
    assert phases == expected | (dict(detach_last=50_000) if last else {})
    assert hooks.distill_coef.policy == 'step'
    assert hooks.checkpoint.by_epoch is False
    pipeline = cfg.train_dataloader.dataset.pipeline
    assert pipeline[1].get('with_mask', False) == masks
    if longer:
        assert pipeline[2].scales == SCALES
    else:
        assert (pipeline[2].type, pipeline[2].scale) == ('Resize', (1333, 800))


@pytest.mark.parametrize('path', TAUGHT, ids=lambda path: path.stem)
def test_teachers_are_of_mmdet_s_zoo_and_fit_their_students(path):
    cfg = read(path)
    teacher = cfg.model.teachers.pretrained
    assert teacher.keys() == {'type', 'config', 'checkpoint'}
    config, checkpoint = teacher.config, teacher.checkpoint
    config = config.removeprefix('mmdet::')
    metafile = yaml.safe_load((STOCK / config).with_name('metafile.yml').read_text())
    assert [x['Weights'] for x in metafile['Models'] if x['Config'] == f'configs/{config}'] == [
        checkpoint
    ]
    student, teacher = cfg.model.student, read(STOCK / config).model
    assert teacher.backbone.depth == 101
    assert teacher.neck == student.neck
    if any(term.type == 'LogitTerm' for term in cfg.model.terms.values()):
        assert teacher.bbox_head == student.bbox_head
    terms = [*cfg.model.terms, *['distill'] * (cfg.model.type == 'SSSDDistiller')]
    for hook in cfg.default_hooks.values():
        if hook.type == 'AdaptiveDistillCoefHook':
            assert hook.get('term', 'distill') in terms


@pytest.mark.parametrize(
    ('name', 'scale'),
    [('r50-r101_fpn_600-270k_coco', (1000, 600)), ('r50-r101_fpn_270k_semi-coco', (1333, 800))],
)
def test_sad_s_schedule_and_image_sizes(name, scale):
    cfg = read(ROOT / f'configs/sad/sad_retinanet_{name}.py')
    assert cfg.train_cfg.max_iters == cfg.param_scheduler[1].end == 270_000
    assert cfg.param_scheduler[1].milestones == [180_000, 240_000]
    assert cfg.train_dataloader.batch_size == 2  # of 8 processes
    for stage in ('train', 'val', 'test'):
        for _, dataset in leaf_configs(cfg, f'{stage}_dataloader.dataset'):
            (resize,) = [x for x in dataset.pipeline if x.type == 'Resize']
            assert resize.scale == scale


@pytest.mark.parametrize(
    'name',
    [
        pytest.param('sad/sssd_sad_retinanet_r50-r101_fpn_2x_coco', marks=pytest.mark.slow),
        'demo/structural_kd_retinanet_r18-small_own-data',
        'demo/sad_retinanet_r18-small_own-data',
        'demo/sad_retinanet_r18-small_semi-own-data',
        'demo/lgd_retinanet_r18-small_own-data',
    ],
)
def test_a_step_is_trained(name):
    result = check_config(ROOT / f'configs/{name}.py')
    assert (result.stock, result.distilled) == ('ok', 'ok')


def test_test_data_of_ones_own_are_the_validation_data_unless_named(monkeypatch):
    path = ROOT / 'configs/_base_/own_data.py'
    cfg = Config.fromfile(path)
    assert cfg.test_dataloader == cfg.val_dataloader
    assert cfg.test_evaluator == cfg.val_evaluator
    monkeypatch.setenv('SSSD_TEST_ANN', 'test.json')
    monkeypatch.setenv('SSSD_TEST_IMG', 'others')
    dataset = dict(ann_file='test.json', data_prefix=dict(img='others'))
    assert overrides(cfg.to_dict(), Config.fromfile(path).to_dict()) == dict(
        test_dataloader=dict(dataset=dataset),
        test_evaluator=dict(ann_file=f'{cfg.data_root}/test.json'),
    )


def test_annotation_files_of_ones_own_may_be_anywhere(monkeypatch):
    monkeypatch.setenv('SSSD_VAL_ANN', '/elsewhere/val.json')
    cfg = Config.fromfile(ROOT / 'configs/_base_/own_data.py')
    assert cfg.val_evaluator.ann_file == cfg.test_evaluator.ann_file == '/elsewhere/val.json'


def test_length_and_classes_of_own_data_reach_everything(tmp_path):
    cfg = Config.fromfile(ROOT / 'configs/sssd/sssd_retinanet_r50_fpn_own-data.py')
    assert cfg.train_cfg.max_epochs == cfg.param_scheduler[1].end == 36
    assert cfg.param_scheduler[1].milestones == [24, 32]
    assert cfg.param_scheduler[0].end == 1 + 36 * 40 // 8 // 20
    assert cfg.model.student.bbox_head.num_classes == 2
    for stage in ('train', 'val', 'test'):
        loader = cfg[f'{stage}_dataloader']
        assert loader.batch_size == 8
        assert loader.dataset.metainfo.classes == ('platelet', 'cell')
        assert loader.dataset.data_root == str(tmp_path)
    assert cfg.val_evaluator.ann_file == f'{tmp_path}/annotations/val.json'
    assert cfg.auto_scale_lr == dict(enable=True, base_batch_size=16)
    semi = Config.fromfile(ROOT / 'configs/demo/sad_retinanet_r18-small_semi-own-data.py')
    assert semi.train_cfg.max_iters == semi.param_scheduler[1].end == 36 * (40 + 40) // 8
    assert semi.param_scheduler[1].milestones == [240, 320]


def test_warm_up_of_own_data_takes_as_much_of_a_run_of_several_processes(monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    cfg = Config.fromfile(ROOT / 'configs/sssd/sssd_retinanet_r50_fpn_own-data.py')
    assert cfg.param_scheduler[0].end == 1 + 36 * 40 // 16 // 20


def test_own_teacher_is_found_from_anywhere(tmp_path, monkeypatch):
    """The configs may lie in the installed package, and the run start in another folder."""
    shutil.copytree(ROOT / 'configs', tmp_path / 'package/configs')
    monkeypatch.chdir(tmp_path / 'annotations')
    demo, sad = Path('../package/configs/demo'), 'sad_retinanet_r18-small_own-data.py'
    teacher = Config.fromfile(demo / sad).model.teachers.pretrained
    assert teacher.config == str(tmp_path / 'package/configs/demo/retinanet_r18_own-data.py')
    assert teacher.checkpoint == 'teacher.pth'
    monkeypatch.setenv('SSSD_TEACHER_CONFIG', 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py')
    teacher = Config.fromfile(demo / sad).model.teachers.pretrained
    assert teacher.config == 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'


def test_own_teacher_has_to_be_named(monkeypatch):
    monkeypatch.delenv('SSSD_TEACHER_CHECKPOINT')
    with pytest.raises(ConfigError, match=r'SSSD_TEACHER_CHECKPOINT is not set'):
        Config.fromfile(ROOT / 'configs/demo/structural_kd_retinanet_r18-small_own-data.py')


def test_the_metafiles_list_every_config_but_the_demo():
    index = modelindex.load(str(ROOT / 'model-index.yml'))
    assert {ROOT / x.config for x in index.models} == {
        path for path in CONFIGS if path.parent.name != 'demo'
    }
    for model in index.models:
        assert model.name == Path(model.config).stem == model.name.lower()
        assert model.in_collection == Path(model.config).parent.name
        for result in model.results or ():
            assert all('not reproduced' in metric for metric in result.metrics)
