"""Wrapped configs with knowledge from outside: a trained detector, and images without labels."""

import json

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner

from mmdet_sssd import ConfigError, recipes
from mmdet_sssd.commands.comparison.arms import arm_config, find_arm, read_roots
from mmdet_sssd.commands.shapes import CLASSES
from mmdet_sssd.commands.wrapping import WrappingOptions, write_wrapped_config
from mmdet_sssd.commands.wrapping.wrapped_config import _unlabelled_settings
from mmdet_sssd.config_tree import value_at
from mmdet_sssd.datasets import use_data
from mmdet_sssd.models import backbone_teacher
from mmdet_sssd.runs import load_from_local
from mmdet_sssd_cli import making

from ...small_runner import LABELS_FIRST, draw_shapes, shapes_dataset
from ...stock_detectors import stock_config
from ...tools.run_comparison import assert_equal_states, scalars

UNLABELLED = dict(unlabelled='annotations/unlabelled.json', unlabelled_img='train')
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
        loader = dict(
            batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True)
        )
        cfg = Config(
            dict(
                default_scope='mmdet',
                model=stock_config(detector),
                train_dataloader={**loader, 'dataset': shapes_dataset(root, 'val', LABELS_FIRST)},
                train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=2),
                optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
            )
        )
        cfg.train_dataloader.dataset.test_mode = False
        use_data(cfg, classes=CLASSES)
        cfg.dump(root / f'{name}.py')
        torch.manual_seed(0)
        detector = MODELS.build(cfg.model)
        if name == 'stock':
            detector.bbox_head.retina_cls.bias.data.zero_()
        torch.save(dict(state_dict=detector.state_dict(), meta={}), root / f'{name}.pth')
    return root


def wrapped(folder, teacher='stock', checkpoint=None, build=True, **options):
    """Wrap the stock config, with a teacher and its weights; gives the config and the notes."""
    if teacher:
        weights = folder / (checkpoint or f'{teacher}.pth')
        options['teacher'] = (str(folder / f'{teacher}.py'), str(weights))
    out = folder / 'wrapped.py'
    notes = write_wrapped_config(str(folder / 'stock.py'), out, WrappingOptions(**options), build)
    return Config.fromfile(out), notes


def arm(folder, name):
    """Make the config of an arm from what was wrapped last."""
    return arm_config(find_arm(name, {}), read_roots(str(folder / 'wrapped.py')))


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
    assert not any('recipe gentle' in x for x in notes)  # a teacher from outside, or one was named


@pytest.mark.parametrize('teacher', ['yolox', 'rcnn'])
def test_a_teacher_of_another_kind(folder, teacher):
    cfg, _ = wrapped(folder, teacher=teacher)
    model = MODELS.build(cfg.model)
    matched = {'yolox': [0, 1, 2, 2], 'rcnn': [1, 2, 3, 4, 4]}  # strides 8 to 32, and 4 to 64
    assert model.terms['ssim'].pairs == [*enumerate(matched[teacher])]
    with pytest.raises(ConfigError, match=r'model\.terms\.adl: .*(differ|no dense)'):
        wrapped(folder, teacher=teacher, method='sad')
    labelling, _ = wrapped(folder, teacher=teacher, **UNLABELLED)
    assert labelling.model.type == 'SemiDistiller'


def test_a_backbone_of_timm_s(folder):
    options = dict(backbone_teacher='vit_tiny_patch16_224=vit.pth', recipe='gentle')
    cfg, _ = wrapped(folder, teacher=None, build=False, **options)
    teacher = dict(type='BackboneTeacher', backbone='vit_tiny_patch16_224', checkpoint='vit.pth')
    assert cfg.model.teachers == dict(backbone=teacher)
    assert cfg.model.terms == recipes.backbone.model['terms']
    phases = recipes.gentle.hooks['phases'] | dict(detach_student=1 / 3)  # by SGD
    assert cfg.default_hooks == recipes.backbone.hooks | recipes.gentle.hooks | dict(phases=phases)
    assert arm(folder, 'backbone').model == dict(
        recipes.backbone.model, student=cfg.model.student, teachers=cfg.model.teachers
    )


def test_weights_of_timm_s_are_not_downloaded_while_wrapping(folder, monkeypatch):
    def backbone(name, pretrained=False):
        assert not pretrained, 'downloads'
        return MODELS.build(dict(type='ResNet', depth=18))

    monkeypatch.setattr(backbone_teacher, '_timm_backbone', backbone)
    cfg, _ = wrapped(folder, teacher=None, backbone_teacher='resnet18')
    assert cfg.model.teachers.backbone.backbone == 'resnet18'


@pytest.mark.parametrize(('filter_empty', 'repeat'), [(False, 2), (True, 3)])
def test_both_kinds_of_images_are_about_as_many(tmp_path, filter_empty, repeat):
    """Of four labelled images two have an object, and of the others some are left out."""
    images = [dict(id=i) for i in range(6)]
    objects = [dict(image_id=i) for i in (0, 0, 1)]
    for name, content in (
        ('some', dict(images=images[:4], annotations=objects)),
        ('all', dict(images=images, annotations=[])),
    ):
        (tmp_path / f'{name}.json').write_text(json.dumps(content | dict(categories=[])))
    data = dict(data_root=str(tmp_path), ann_file='some.json')
    data['filter_cfg'] = dict(filter_empty_gt=filter_empty)
    options = WrappingOptions(unlabelled='all.json', teacher=('a.py', 'a.pth'))
    assert _unlabelled_settings(ConfigDict(data, indices=[0]), options)['repeat'] == 6
    assert _unlabelled_settings(ConfigDict(data), options)['repeat'] == repeat


@pytest.mark.parametrize('method', [None, 'sad'])
def test_images_without_labels_train_are_resumed_and_the_export_is_stock(folder, method, tmp_path):
    def train(work_dir, **options):
        cfg, _ = wrapped(folder, method=method, **UNLABELLED)
        cfg.default_hooks.logger = dict(type='LoggerHook', interval=1)
        cfg.default_hooks.checkpoint.interval = 1
        cfg.update(work_dir=str(work_dir), experiment_name=str(work_dir), **options)
        cfg.randomness = dict(seed=0)
        runner = Runner.from_cfg(cfg)
        runner.train()
        return runner

    runner = train(tmp_path / 'whole')
    assert len(runner.train_dataloader.dataset) == 2 * 4 + 8  # the labelled ones twice
    rows = scalars(tmp_path / 'whole')
    assert len(rows) == 2 * (2 * 4 + 8) / 4
    names = {'loss_cls', 'loss_bbox', *(['loss_adl'] if method else [])}
    logged = set().union(*rows.values())
    assert names | {f'unsup.{x}' for x in names} | {'unsup.pseudo_boxes'} <= logged
    assert max(x.get('unsup.pseudo_boxes', 0) for x in rows.values()) > 0
    exported = Config.fromfile(next((tmp_path / 'whole/export').glob('*.py')))
    assert exported.model.type == 'RetinaNet'
    dataset = Runner.build_dataloader(exported.train_dataloader).dataset
    assert len(dataset) == 8
    assert sum(len(dataset[i]['data_samples'].gt_instances) for i in range(8)) > 0

    middle = str(tmp_path / 'whole/epoch_1.pth')
    train(tmp_path / 'resumed', load_from=middle, resume=True)
    assert scalars(tmp_path / 'resumed') == {step: rows[step] for step in (5, 6, 7, 8)}
    ours, expected = (load_from_local(f'{tmp_path}/{x}/epoch_2.pth') for x in ('resumed', 'whole'))
    for key in ('state_dict', 'optimizer'):
        assert_equal_states(ours[key], expected[key], key)


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
        (dict(checkpoint='rcnn.pth'), r'pretrained\.checkpoint is .*rcnn\.pth'),
        (dict(checkpoint='none.pth'), r'pretrained\.checkpoint is .*none\.pth'),
    ],
)
def test_what_does_not_fit_is_refused(folder, options, message):
    with pytest.raises(ConfigError, match=message):
        wrapped(folder, **options)


def test_arms_of_a_comparison_learn_from_the_config_s_teacher(folder):
    cfg, _ = wrapped(folder, recipe='gentle')
    for method in making.METHODS:
        alone, _ = wrapped(folder, method=method)
        wrapped(folder, recipe='gentle')
        assert arm(folder, method).model == alone.model
    assert 'teachers' not in arm(folder, 'gentle').model
    assert arm(folder, 'config').model == cfg.model
    with pytest.raises(ConfigError, match='arm semi needs what wrap --unlabelled'):
        arm(folder, 'semi')
    cfg, _ = wrapped(folder, method='sad', **UNLABELLED)
    semi = arm(folder, 'semi')
    assert semi.train_dataloader == cfg.train_dataloader
    assert (semi.model.type, semi.model.get('terms')) == ('SemiDistiller', None)
    # as many labelled images
    assert value_at(arm(folder, 'baseline'), 'train_dataloader.dataset.times') == 2
    wrapped(folder, teacher=None)
    with pytest.raises(ConfigError, match='arm sad needs what wrap --teacher writes'):
        arm(folder, 'sad')
