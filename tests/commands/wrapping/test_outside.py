"""Wrapped configs with knowledge from outside: a trained detector, and images without labels."""

import json
import math
from pathlib import Path

import pytest
import torch
from mmdet.datasets.transforms import CachedMosaic, Mosaic
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.runner import Runner

from mmdet_sssd import ConfigError, recipes
from mmdet_sssd.commands.comparison.arms import arm_config, find_arm, read_definitions, read_roots
from mmdet_sssd.commands.shapes import CLASSES
from mmdet_sssd.commands.wrapping import WrappingOptions, read_config, write_wrapped_config
from mmdet_sssd.config_tree import rewritten, value_at
from mmdet_sssd.datasets import use_data
from mmdet_sssd_cli import making

from ...small_runner import LABELS_FIRST, draw_shapes, shapes_dataset
from ...stock_detectors import CONFIGS, stock_config
from ...tools.run_comparison import scalars

TERMS = {x: getattr(recipes, x).model['terms'] for x in making.METHODS}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A stock config on drawn shapes, a teacher half sure of everything, and unlabelled images."""
    root = draw_shapes(tmp_path_factory.mktemp('shapes'))
    content = json.loads((root / 'annotations/train.json').read_text())
    unlabelled = dict(images=content['images'], categories=content['categories'])
    (root / 'annotations/unlabelled.json').write_text(json.dumps(unlabelled))
    register_all_modules()
    for name, detector in (('stock', 'retinanet'), ('yolox', 'yolox'), ('rcnn', 'faster_rcnn')):
        model = stock_config(detector)
        for head in (model.get('bbox_head'), (model.get('roi_head') or {}).get('bbox_head')):
            if head:
                head.num_classes = 5
        loader = dict(
            batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True)
        )
        cfg = Config(
            dict(
                default_scope='mmdet',
                model=model,
                train_dataloader={**loader, 'dataset': shapes_dataset(root, 'val', LABELS_FIRST)},
                train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=1),
                optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
            )
        )
        cfg.train_dataloader.dataset.test_mode = False
        cfg.dump(root / f'{name}.py')
        torch.manual_seed(0)
        detector = MODELS.build(model)
        if name == 'stock':
            detector.bbox_head.retina_cls.bias.data.zero_()
        torch.save(dict(state_dict=detector.state_dict(), meta={}), root / f'{name}.pth')
    return root


def wrapped(folder, stock='stock', teacher='stock', **options):
    if teacher:
        options['teacher'] = (str(folder / f'{teacher}.py'), str(folder / f'{teacher}.pth'))
    out = folder / 'wrapped.py'
    notes = write_wrapped_config(str(folder / f'{stock}.py'), out, WrappingOptions(**options))
    return Config.fromfile(out), notes


@pytest.mark.parametrize(
    ('method', 'recipe'), [(None, None), ('structural_kd', 'paper'), ('sad', 'gentle')]
)
def test_a_teacher_and_what_it_teaches(folder, method, recipe):
    cfg, notes = wrapped(folder, method=method, recipe=recipe)
    assert cfg.model.teachers.pretrained.checkpoint == str(folder / 'stock.pth')
    assert cfg.model.terms == TERMS[method or 'structural_kd']
    own = getattr(recipes, recipe).model if recipe else dict(type='Distiller')
    assert cfg.model.to_dict().items() >= own.items()
    hooks = getattr(recipes, recipe or 'run').hooks
    assert cfg.default_hooks.keys() == hooks.keys()
    assert any('--method sad' in x for x in notes) == (method is None)  # the choice is said


@pytest.mark.parametrize('teacher', ['yolox', 'rcnn'])
def test_a_teacher_of_another_kind(folder, teacher):
    cfg, _ = wrapped(folder, teacher=teacher)
    model = MODELS.build(cfg.model)
    matched = {'yolox': [0, 1, 2, 2], 'rcnn': [1, 2, 3, 4, 4]}  # strides 8 to 32, and 4 to 64
    assert model.terms['ssim'].pairs == [*enumerate(matched[teacher])]
    with pytest.raises(ConfigError, match=r'model\.terms\.adl: .*(differ|no dense)'):
        wrapped(folder, teacher=teacher, method='sad')


def test_a_backbone_of_timm_s(folder):
    options = dict(teacher=None, backbone_teacher='vit_tiny_patch16_224=vit.pth', recipe='gentle')
    out = folder / 'backbone.py'
    write_wrapped_config(str(folder / 'stock.py'), out, WrappingOptions(**options), build=False)
    cfg = Config.fromfile(out)
    teacher = dict(type='BackboneTeacher', backbone='vit_tiny_patch16_224', checkpoint='vit.pth')
    assert cfg.model.teachers == dict(backbone=teacher)
    assert cfg.model.terms == recipes.backbone.model['terms']
    hooks = recipes.backbone.hooks | recipes.gentle.hooks
    assert cfg.default_hooks == hooks
    assert arm_config(find_arm('backbone', read_definitions()), read_roots(str(out))).model == dict(
        recipes.backbone.model, student=cfg.model.student, teachers=cfg.model.teachers
    )


@pytest.mark.parametrize('method', [None, 'sad'])
def test_images_without_labels_train_and_the_export_is_stock(folder, method, tmp_path):
    cfg, _ = wrapped(
        folder, unlabelled='annotations/unlabelled.json', unlabelled_img='train', method=method
    )
    cfg.work_dir = str(tmp_path)
    cfg.default_hooks.logger = dict(type='LoggerHook', interval=1)
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert len(runner.train_dataloader.dataset) == 2 * 4 + 8  # the labelled ones twice
    log = [json.loads(x) for x in next(tmp_path.rglob('scalars.json')).read_text().splitlines()]
    assert len(log) == 4
    names = {'loss_cls', 'loss_bbox', *(['loss_adl'] if method else [])}
    logged = set().union(*log)
    assert names | {f'unsup.{x}' for x in names} | {'unsup.pseudo_boxes'} <= logged
    assert max(x.get('unsup.pseudo_boxes', 0) for x in log) > 0
    exported = Config.fromfile(next((tmp_path / 'export').glob('*.py')))
    assert exported.model.type == 'RetinaNet'
    dataset = Runner.build_dataloader(exported.train_dataloader).dataset
    assert len(dataset) == 8
    assert sum(len(dataset[i]['data_samples'].gt_instances) for i in range(8)) > 0


SWITCHING = {  # these configs mix images until a hook switches the pipeline, in the last epochs
    'rtmdet': (CachedMosaic, dict(type='PipelineSwitchHook', switch_epoch=1)),
    'yolox': (Mosaic, dict(type='YOLOXModeSwitchHook', num_last_epochs=0)),
}


def switching_config(root, name):
    """Shrink a stock config to images of 64x64 and two epochs; write it with a teacher's weights."""

    def tenth(value):
        return value // 10 if type(value) is int and abs(value) > 200 else value

    cfg = Config(rewritten(read_config(f'mmdet::{CONFIGS[name]}')._cfg_dict, tenth))
    cfg.model = stock_config(name)
    cfg.model.backbone.widen_factor = 1 / 8
    cfg.model.neck.update(in_channels=[32, 64, 128], out_channels=32)
    cfg.model.bbox_head.update(in_channels=32, feat_channels=32)
    data = dict(data_root=str(root), train_ann='annotations/val.json', train_img='val')
    use_data(cfg._cfg_dict, **data, classes=CLASSES)
    cfg.train_dataloader.update(batch_size=4, num_workers=0, persistent_workers=False)
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=2)
    (hook,) = [x for x in cfg.custom_hooks if x.type == SWITCHING[name][1]['type']]
    hook.update(SWITCHING[name][1])
    for key in ('dataloader', 'evaluator', 'cfg'):
        cfg.pop(f'val_{key}')
        cfg.pop(f'test_{key}')
    cfg.pop('param_scheduler')
    cfg.dump(root / f'{name}.py')
    teacher = MODELS.build(cfg.model)
    teacher.init_weights()
    for key, parameter in teacher.bbox_head.named_parameters():
        if key.endswith('bias') and any(x in key for x in ('cls', 'obj', 'rtm_reg')):
            parameter.data.fill_(1.0)  # sure enough of everything
    torch.save(dict(state_dict=teacher.state_dict()), root / f'{name}.pth')


@pytest.mark.slow  # in parts: tests/datasets/test_branches.py
@pytest.mark.parametrize('name', SWITCHING)
def test_a_hook_switches_the_pipelines_of_both_kinds_of_images(folder, name, tmp_path, monkeypatch):
    switching_config(folder, name)
    cfg, _ = wrapped(
        folder, name, name, unlabelled='annotations/train.json', unlabelled_img='train'
    )
    cfg.work_dir = cfg.visualizer.name = str(tmp_path)
    cfg.default_hooks.logger.interval = 1
    runner = Runner.from_cfg(cfg)
    mosaic, mixed = SWITCHING[name][0], set()
    mix = mosaic.transform

    def watched(self, results):
        mixed.add((runner.epoch, Path(results['img_path']).parent.name))
        return mix(self, results)

    monkeypatch.setattr(mosaic, 'transform', watched)
    runner.train()
    assert mixed == {(0, 'train'), (0, 'val')}  # in the first epoch, labelled and unlabelled images
    rows = list(scalars(tmp_path).values())
    assert len(rows) == 2 * (2 * 4 + 8) / 4
    assert all(math.isfinite(row['loss']) for row in rows)
    first, last = (set().union(*x) for x in (rows[:4], rows[4:]))
    assert {'loss_cls', 'unsup.loss_cls'} <= first & last
    assert any(row.get('unsup.pseudo_boxes') for row in rows[4:])
    assert ('loss_l1' in first, 'loss_l1' in last) == (False, name == 'yolox')
    exported, stock = (
        Config.fromfile(x) for x in (*(tmp_path / 'export').glob('*.py'), folder / f'{name}.py')
    )
    assert exported.custom_hooks == stock.custom_hooks
    assert exported.train_dataloader.dataset.dataset == stock.train_dataloader.dataset


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(teacher=None, method='sad'), '--method needs --teacher'),
        (dict(teacher=None, unlabelled='x.json'), '--unlabelled needs --teacher'),
        (dict(unlabelled_img='x'), '--unlabelled-img needs --unlabelled'),
        (dict(unlabelled='x.json', recipe='paper'), '--recipe is paper.*--method'),
        (dict(masks=True), '--masks is for'),
        (dict(unlabelled='x.json', backbone_teacher='vit'), '--backbone-teacher is vit.*--method'),
        (dict(backbone_teacher=__file__), r'--backbone-teacher is a file; accepted: MODEL='),
        (dict(unlabelled='x.json'), 'x.json'),
        (dict(teacher='nothing'), r"teachers\.pretrained\.config is '.*nothing\.py'"),
        (dict(unlabelled='annotations/unlabelled.json', teacher='yolox'), None),
    ],
)
def test_what_does_not_fit_is_refused(folder, options, message):
    if message is None:  # any detector of the same classes labels images
        assert wrapped(folder, **options)[0].model.type == 'SemiDistiller'
        return
    with pytest.raises(ConfigError, match=message):
        wrapped(folder, **options)


def test_weights_of_another_detector_are_refused_before_training(folder):
    for checkpoint in ('rcnn.pth', 'none.pth'):
        teacher = str(folder / 'stock.py'), str(folder / checkpoint)
        with pytest.raises(ConfigError, match=rf'pretrained\.checkpoint is .*{checkpoint}'):
            write_wrapped_config(
                str(folder / 'stock.py'), folder / 'wrong.py', WrappingOptions(teacher=teacher)
            )
    assert not (folder / 'wrong.py').exists()


def test_arms_of_a_comparison_learn_from_the_config_s_teacher(folder):
    def arm(name):
        roots = read_roots(str(folder / 'wrapped.py'))
        return arm_config(find_arm(name, read_definitions()), roots)

    cfg, _ = wrapped(folder, recipe='gentle')
    for method in making.METHODS:
        alone, _ = wrapped(folder, method=method)
        wrapped(folder, recipe='gentle')
        assert arm(method).model == alone.model
    assert 'teachers' not in arm('gentle').model
    assert arm('config').model == cfg.model
    with pytest.raises(ConfigError, match='arm semi needs what wrap --unlabelled'):
        arm('semi')
    cfg, _ = wrapped(
        folder, method='sad', unlabelled='annotations/unlabelled.json', unlabelled_img='train'
    )
    semi = arm('semi')
    assert semi.train_dataloader == cfg.train_dataloader
    assert (semi.model.type, semi.model.get('terms')) == ('SemiDistiller', None)
    baseline = arm('baseline')
    assert value_at(baseline, 'train_dataloader.dataset.times') == 2  # as many labelled images
    wrapped(folder, teacher=None)
    with pytest.raises(ConfigError, match='arm sad needs what wrap --teacher writes'):
        arm('sad')
