"""The wrapped configs of real stock configs: read back, and some of them built."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mmdet.registry import HOOKS, MODELS, OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.config import Config, ConfigDict
from mmengine.optim import DefaultOptimWrapperConstructor

from mmdet_sssd import ConfigError
from mmdet_sssd.commands.comparison.arms import arm_config, find_arm, read_definitions
from mmdet_sssd.commands.wrapping import WrappingOptions, write_wrapped_config
from mmdet_sssd.commands.wrapping.options import RANKING_BRANCHES, without_defaults
from mmdet_sssd.hooks import AdaptiveDistillCoefHook
from mmdet_sssd.models import losses
from mmdet_sssd_cli import making

from ...command import error_of, run_command

ROOT = Path(__file__).parents[3]
RETINANET = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
STOCK = [
    RETINANET,
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',  # data_preprocessor at the top
    'mmdet::convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py',  # its own imports
    'mmdet::yolox/yolox_s_8xb8-300e_coco.py',  # MultiImageMixDataset, custom_hooks
    'mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_20e_coco.py',  # lists of heads
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_ms-3x_coco.py',  # RepeatDataset
    'mmdet::detr/detr_r50_8xb2-150e_coco.py',
]
TINY = """
_base_ = ['mmdet::_base_/models/{model}', 'mmdet::_base_/datasets/coco_detection.py',
          'mmdet::_base_/default_runtime.py', 'mmdet::_base_/schedules/schedule_1x.py']
model = dict(backbone=dict(init_cfg=None))
"""


def bare(config):
    """A config without the scope that mmengine writes into what it inherits from a package."""
    if isinstance(config, dict):
        return {key: bare(value) for key, value in config.items() if key != '_scope_'}
    if isinstance(config, (list, tuple)):
        return type(config)(map(bare, config))
    return config


def read(path) -> dict:
    return bare(Config.fromfile(path, import_custom_modules=False)._cfg_dict.to_dict())


def read_stock(tmp_path, name) -> dict:
    (tmp_path / 'heir.py').write_text(f"_base_ = '{name}'\n")
    return read(tmp_path / 'heir.py')


def wrapped_by(tmp_path, stock=RETINANET, build=False, **options) -> dict:
    write_wrapped_config(str(stock), tmp_path / 'out/wrapped.py', WrappingOptions(**options), build)
    return read(tmp_path / 'out/wrapped.py')


def stock_file(tmp_path, text, model='retinanet_r50_fpn.py'):
    path = tmp_path / 'stock.py'
    path.write_text(TINY.format(model=model) + text)
    return path


@pytest.mark.parametrize('name', STOCK, ids=lambda name: name.split('/')[0][7:])
def test_a_wrapped_config_is_its_stock_config_but_for_distiller_hooks_and_import(tmp_path, name):
    stock, wrapped = read_stock(tmp_path, name), wrapped_by(tmp_path, name, recipe='paper')
    model = dict(type='SSSDDistiller', student=stock.pop('model'))
    if 'roi_head' in model['student']:
        model['teacher'] = dict(detach_appearance=True)
    assert wrapped.pop('model') == model
    imports = stock.pop('custom_imports', dict(imports=[], allow_failed_imports=False))
    imports['imports'].append('mmdet_sssd')
    assert wrapped.pop('custom_imports') == imports
    hooks, stock_hooks = wrapped.pop('default_hooks'), stock.pop('default_hooks')
    shared = Config.fromfile(ROOT / 'configs/_base_/sssd.py').sssd_hooks
    assert set(hooks) == set(stock_hooks) | set(shared)
    for hook, config in stock_hooks.items():
        assert config.items() <= {**config, **hooks[hook]}.items() or hook in shared
    assert wrapped == stock


def test_its_hooks_are_those_of_the_shared_configs():
    folder = ROOT / 'configs/_base_'
    shared = Config.fromfile(folder / 'sssd.py').sssd_hooks
    text = ''.join((folder / name).read_text() for name in ('sssd.py', 'distiller.py'))
    expected = {name: without_defaults(hook, HOOKS) for name, hook in shared.items()}
    paper = WrappingOptions(recipe='paper')
    assert list(paper.hooks().items()) == list(expected.items())
    for name in expected:
        comment = paper.comments()[name]
        assert f'    # {comment}\n    {name}=dict(' in text


def test_what_is_documented_is_what_the_tool_writes(tmp_path, monkeypatch):
    guide = (ROOT / 'docs/tutorials/wrap.md').read_text()
    documented = re.findall(
        r'```bash\nmmdet-sssd wrap (.*?)```\n\n```python\n(.*?)```', guide, re.S
    )
    assert len(documented) == 2
    (tmp_path / 'data/cells').mkdir(parents=True)
    names = ('platelet', 'red', 'white')
    content = {'images': [], 'categories': [{'id': i, 'name': x} for i, x in enumerate(names)]}
    (tmp_path / 'data/cells/train.json').write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    for command, written in documented:
        Path('my_config.py').unlink(missing_ok=True)
        assert run_command('wrap', *command.replace('\\\n', '').split())[0] == 0
        assert Path('my_config.py').read_text() == written


def test_hooks_and_settings_follow_the_options(tmp_path):
    wrapped = wrapped_by(
        tmp_path,
        loss='JSDistanceLoss',
        dim='channel',
        tau=2.0,
        distill_coef=3.0,
        policy='inverse_lr',
        factor=3.0,
        max_decays=-1,
        context_box=False,
        detach_appearance=True,
        from_scratch=True,
    )
    settings = {key: value for key, value in wrapped['model'].items() if key != 'student'}
    assert settings == dict(
        type='SSSDDistiller',
        teacher=dict(add_context_box=False, detach_appearance=True),
        distill_loss=dict(type='JSDistanceLoss', dim='channel', tau=2.0),
        distill_coef=3.0,
        teacher_head_grad=dict(cls=0),
        economy=True,
    )
    hook = wrapped['default_hooks']['distill_coef']
    assert hook == dict(type='AdaptiveDistillCoefHook', policy='inverse_lr', factor=3.0)
    assert 'freeze_backbone' not in wrapped['default_hooks']


def test_the_gentle_recipe_is_the_arm_of_that_name(tmp_path):
    roots = {'distiller': Config(wrapped_by(tmp_path, recipe='paper'))}
    arm = arm_config(find_arm('gentle', read_definitions()), roots).to_dict()
    assert arm['default_hooks'].pop('freeze_backbone')['first'] == 0
    wrapped = wrapped_by(tmp_path)
    assert wrapped['model'].pop('teacher_head_grad') == dict(cls=0)
    assert arm['model'].pop('teacher_head_grad') == {'|'.join(RANKING_BRANCHES): 0}
    assert wrapped == arm


@pytest.mark.parametrize(
    ('name', 'settings'),
    [
        (
            'centernet/centernet_r18_8xb16-crop512-140e_coco.py',
            dict(start_level=0, teacher_head_grad=dict(heat=0)),
        ),
        ('yolo/yolov3_mobilenetv2_8xb24-320-300e_coco.py', dict(teacher_head_grad=1.0)),
        (
            'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
            dict(teacher_head_grad=dict(cls=0, centerness=0)),
        ),
        (
            'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
            dict(teacher_head_grad=0, teacher=dict(detach_appearance=True)),
        ),
        ('yolox/yolox_tiny_8xb8-300e_coco.py', dict(teacher_head_grad=dict(cls=0, obj=0))),
    ],
)
def test_the_recipe_follows_what_a_detector_has(tmp_path, name, settings):
    model = wrapped_by(tmp_path, f'mmdet::{name}', build=True)['model']
    assert model.items() >= settings.items()


def test_teachers_of_two_stage_detectors_are_detached_as_in_the_papers(tmp_path):
    stock = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
    model = wrapped_by(tmp_path, stock, recipe='paper')['model']
    assert model['teacher'] == dict(detach_appearance=True)
    model = wrapped_by(tmp_path, stock, recipe='paper', detach_appearance=False)['model']
    assert 'teacher' not in model


def test_what_is_the_default_already_is_not_written(tmp_path):
    plain = wrapped_by(tmp_path)
    text = (tmp_path / 'out/wrapped.py').read_text()
    defaults = dict(
        loss='JSDistanceLoss',
        dim='spatial',
        tau=1.0,
        policy='step',
        factor=2.0,
        max_decays=1,
        context_box=True,
        detach_appearance=False,
    )
    assert wrapped_by(tmp_path, **defaults) == plain
    assert (tmp_path / 'out/wrapped.py').read_text() == text


def test_classes_reach_every_stage_of_a_cascade(tmp_path):
    wrapped = wrapped_by(
        tmp_path,
        'mmdet::scnet/scnet_r50_fpn_1x_coco.py',
        build=True,
        classes=('platelet', 'red', 'white'),
    )
    for stage in ('train', 'val', 'test'):
        assert wrapped[f'{stage}_dataloader']['dataset']['metainfo']['classes'] == (
            'platelet',
            'red',
            'white',
        )
    student = wrapped['model']['student']
    assert student['roi_head']['semantic_head']['num_classes'] == 183  # stuff, not objects
    student['backbone']['init_cfg'] = None
    roi_head = MODELS.build(ConfigDict(student)).roi_head
    assert [head.fc_cls.out_features for head in roi_head.bbox_head] == [4, 4, 4]
    assert roi_head.mask_head.conv_logits.out_channels == 3
    assert roi_head.glbctx_head.fc.out_features == 3


WRAPPED = """
first, second = ({{**_base_.train_dataloader.dataset, 'ann_file': x}} for x in ('a.json', 'b.json'))
train_dataloader = dict(dataset=dict(_delete_=True, type='MultiImageMixDataset', pipeline=[],
    dataset=dict(type='ConcatDataset', datasets=[
        dict(type='RepeatDataset', times=2, dataset=first),
        dict(type='ClassBalancedDataset', oversample_thr=0.1, dataset=second)])))
val_evaluator = [dict(type='CocoMetric', ann_file='old.json'), dict(type='DumpDetResults')]
"""


def test_data_and_classes_reach_wrapped_data_sets_and_lists_of_evaluators(tmp_path):
    stock = stock_file(tmp_path, WRAPPED.replace('{{', '{').replace('}}', '}'))
    names = tuple(f'a class with a long name, number {i}' for i in range(4))
    wrapped = wrapped_by(tmp_path, stock, data_root='cells', val_ann='val.json', classes=names)
    first, second = wrapped['train_dataloader']['dataset']['dataset']['datasets']
    assert [x['dataset']['ann_file'] for x in (first, second)] == ['a.json', 'b.json']
    for dataset in (
        first['dataset'],
        second['dataset'],
        wrapped['val_dataloader']['dataset'],
        wrapped['test_dataloader']['dataset'],
    ):
        assert dataset['data_root'] == 'cells'
        assert dataset['metainfo'] == dict(classes=names)
    assert first['dataset']['data_prefix'] == dict(img='train2017/')
    assert wrapped['val_dataloader']['dataset']['ann_file'] == 'val.json'
    assert wrapped['val_evaluator'][0]['ann_file'] == 'cells/val.json'
    assert wrapped['test_evaluator']['ann_file'] == 'cells/val.json'
    assert wrapped['model']['student']['bbox_head']['num_classes'] == 4
    assert_tidy(tmp_path / 'out/wrapped.py')


def assert_tidy(path):
    """As ruff would leave it."""
    for command in (['format', '--diff'], ['check']):
        settings = ['--config', ROOT / 'pyproject.toml', '--no-cache']
        subprocess.run([sys.executable, '-m', 'ruff', *command, *settings, path], check=True)


def test_a_long_config_is_tidy(tmp_path):
    options = dict(
        context_box=False, detach_appearance=True, loss='NormedMSELoss', distill_coef=3.0
    )
    wrapped_by(tmp_path, classes=('cat',), policy='constant', **options)
    assert_tidy(tmp_path / 'out/wrapped.py')


def test_image_folders_leave_other_prefixes(tmp_path):
    wrapped = wrapped_by(
        tmp_path, 'mmdet::htc/htc_r50_fpn_1x_coco.py', train_img='images', val_img='images'
    )
    train, val = (wrapped[f'{x}_dataloader']['dataset']['data_prefix'] for x in ('train', 'val'))
    assert train == dict(img='images', seg='stuffthingmaps/train2017/')
    assert val == dict(img='images')


def test_masks_are_loaded_wherever_annotations_are(tmp_path):
    wrapped = wrapped_by(tmp_path, 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py', masks=True)
    switched = next(x for x in wrapped['custom_hooks'] if x['type'] == 'PipelineSwitchHook')
    for pipeline in (
        wrapped['train_dataloader']['dataset']['pipeline'],
        switched['switch_pipeline'],
    ):
        (step,) = [x for x in pipeline if x['type'] == 'LoadAnnotations']
        assert step == dict(type='LoadAnnotations', with_bbox=True, with_mask=True)
    assert wrapped['model']['teacher'] == dict(use_masks=True)


def test_a_file_is_inherited_by_its_relative_path(tmp_path):
    wrapped = wrapped_by(tmp_path, stock_file(tmp_path, ''))
    assert (tmp_path / 'out/wrapped.py').read_text().startswith("_base_ = '../stock.py'\n")
    moved = tmp_path.with_name(f'{tmp_path.name}_moved')
    tmp_path.rename(moved)
    assert read(moved / 'out/wrapped.py') == wrapped


def test_a_wrapped_config_is_inherited_and_overridden_like_any_config(tmp_path):
    wrapped = wrapped_by(tmp_path)
    heir = tmp_path / 'out/heir.py'
    heir.write_text(
        "_base_ = './wrapped.py'\n"
        'model = dict(student=dict(bbox_head=dict(num_classes=7)), distill_coef=2)\n'
        "default_hooks = dict(freeze_backbone=None, distill_coef=dict(policy='constant'))\n"
    )
    cfg = Config.fromfile(heir)
    assert cfg.model.student.bbox_head.num_classes == 7
    assert cfg.model.student.bbox_head.type == wrapped['model']['student']['bbox_head']['type']
    assert cfg.default_hooks.distill_coef.max_decays == 1
    cfg.merge_from_dict({'model.student.bbox_head.num_classes': 5})  # --cfg-options
    cfg.model.student.backbone.init_cfg = None
    model = MODELS.build(cfg.model)
    assert model.student.bbox_head.num_classes == model.count_classes() == 5
    assert model.terms['distill'].distill_coef == 2


def test_a_package_that_is_imported_already_is_not_imported_twice(tmp_path):
    imports = "custom_imports = dict(imports=['mmdet_sssd', 'json'], allow_failed_imports=False)\n"
    wrapped = wrapped_by(tmp_path, stock_file(tmp_path, imports))
    assert wrapped['custom_imports']['imports'] == ['mmdet_sssd', 'json']


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class ForeignDecayConstructor(DefaultOptimWrapperConstructor):
    pass


def test_the_note_on_random_weights_and_on_layer_decay(tmp_path):
    out, paper = tmp_path / 'wrapped.py', WrappingOptions(recipe='paper')
    assert write_wrapped_config(STOCK[3], out, build=False) == []  # the gentle one freezes nothing
    (note,) = write_wrapped_config(STOCK[3], out, paper, build=False)
    # A class may load its weights itself.
    assert note.startswith(
        'the backbone has no init_cfg with weights: if it starts from random ones,'
    )
    assert '--from-scratch leaves it out' in note
    scratch = WrappingOptions(recipe='paper', from_scratch=True)
    assert write_wrapped_config(STOCK[3], tmp_path / 'wrapped.py', scratch, build=False) == []
    (note,) = write_wrapped_config(RETINANET, tmp_path / 'wrapped.py', scratch, build=False)
    assert 'model.student.backbone.init_cfg=None' in note
    # mmdet's constructor knows distillers here; others may not.
    assert write_wrapped_config(STOCK[2], tmp_path / 'wrapped.py', build=False) == []
    stock = tmp_path / 'stock.py'
    stock.write_text(
        f"_base_ = '{RETINANET}'\noptim_wrapper = dict(constructor='ForeignDecayConstructor')\n"
    )
    (note,) = write_wrapped_config(str(stock), tmp_path / 'wrapped.py', build=False)
    assert 'ForeignDecayConstructor' in note
    assert 'mmdet_sssd.optimizers.StudentNames' in note


@pytest.mark.parametrize(
    ('stock', 'options', 'message'),
    [
        ('mmdet::no/such.py', {}, r'no/such\.py cannot be read as a config \('),
        ('no_such_file.py', {}, r'no_such_file\.py cannot be read as a config \(FileNotFoundError'),
        ('mmdet::common/lsj-100e_coco-detection.py', {}, r'has no model\.type; accepted'),
        (RETINANET, dict(loss='NormedMSELoss', dim='all', tau=2.0), 'has no --dim and no --tau'),
        (RETINANET, dict(tau=-1.0), r'distill_loss\.tau is -1\.0; accepted: a number > 0'),
        (RETINANET, dict(factor=0.0), r'AdaptiveDistillCoefHook\.factor is 0\.0; accepted'),
        (RETINANET, dict(data_root='/nowhere'), r'/nowhere/annotations/instances_train2017\.json'),
        (
            STOCK[1],
            dict(classes=('a',)),
            r'model\.panoptic_head\.num_things_classes: a Mask2Former',
        ),
        (
            'mmdet::pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py',
            dict(train_ann='train.json'),
            r'train_dataloader has 2 data sets .* ambiguous',
        ),
        (
            'mmdet::lvis/mask-rcnn_r50_fpn_sample1e-3_ms-2x_lvis-v0.5.py',
            dict(classes=('a',)),
            r"train_dataloader\.dataset\.dataset\.type is 'LVISV05Dataset'; .* accept: CocoDataset",
        ),
        ('mmdet::rpn/rpn_r50_fpn_1x_coco.py', dict(classes=('a',)), r'model \(RPN\) has no num_cl'),
        (
            'mmdet::mm_grounding_dino/grounding_dino_swin-t_finetune_8xb4_20e_cat.py',
            dict(classes=('a',)),
            r'model\.language_model: a GroundingDINO needs more than a number of classes',
        ),
    ],
)
def test_what_cannot_be_done_is_refused_and_leaves_nothing(tmp_path, stock, options, message):
    with pytest.raises(ConfigError, match=message):
        wrapped_by(tmp_path, stock, **options)
    assert not list(tmp_path.glob('out/*'))


def test_a_model_that_cannot_be_distilled_is_refused_unless_it_is_not_built(tmp_path):
    stock = stock_file(tmp_path, 'model = dict(neck=dict(type="NoSuchNeck"))\n')
    with pytest.raises(ConfigError, match=r'model\.student \(RetinaNet\) cannot be built'):
        wrapped_by(tmp_path, stock, build=True)
    assert not list(tmp_path.glob('out/*'))
    assert wrapped_by(tmp_path, stock)['model']['student']['neck']['type'] == 'NoSuchNeck'


@pytest.mark.parametrize('kind', ['SSSDDistiller', 'Distiller', 'SemiDistiller'])
def test_every_distiller_is_refused(tmp_path, kind):
    config = tmp_path / 'a.py'
    config.write_text(f"model = dict(type='{kind}', student=dict(type='RetinaNet'))")
    with pytest.raises(ConfigError, match=rf'has a distiller already \(model.type is {kind}\)'):
        write_wrapped_config(str(config), tmp_path / 'b.py')


def test_distilled_and_new_style_configs_are_refused(tmp_path):
    wrapped_by(tmp_path)
    with pytest.raises(ConfigError, match=r'wrapped\.py has a distiller already .* inherit it'):
        write_wrapped_config(str(tmp_path / 'out/wrapped.py'), tmp_path / 'again.py')
    lazy = tmp_path / 'lazy.py'
    lazy.write_text(
        'from mmengine.config import read_base\n'
        'with read_base():\n    from .base import *\n'
        "model = dict(type='RetinaNet')\n"
    )
    with pytest.raises(ConfigError, match=r'is a new-style config \(`with read_base\(\)`\)'):
        write_wrapped_config(str(lazy), tmp_path / 'again.py')


def test_the_command_writes_once_and_ends_with_the_message(tmp_path, capsys):
    out = tmp_path / 'wrapped.py'
    command = ('wrap', RETINANET, '--out', out, '--no-build')
    assert run_command(*command, '--max-decays', 2)[0] == 0
    assert f'mmdet-sssd dry-run {out}' in capsys.readouterr().out
    written = out.read_text()
    assert "distill_coef=dict(type='AdaptiveDistillCoefHook', ratio=0.25, max_decays=2)" in written
    assert error_of(*command) == f'--out {out} exists already; --force replaces it'
    assert out.read_text() == written
    assert run_command(*command, '--force')[0] == 0
    assert out.read_text() != written
    stock = stock_file(tmp_path, '')
    assert 'accepted: a .py file other than' in error_of('wrap', stock, '--out', stock, '--force')
    assert os.path.getsize(stock) > 0


def test_choices_of_options_are_those_of_the_modules():
    """They are written down, because the command line's help does without torch."""
    kinds = losses.FeatureLoss.__subclasses__()  # of other tests too
    own = {cls.__name__ for cls in kinds if cls.__module__.startswith('mmdet_sssd.')}
    assert set(making.LOSSES) == own
    assert making.DIMS == losses.JSDistanceLoss.DIMS
    assert making.POLICIES == AdaptiveDistillCoefHook.POLICIES
