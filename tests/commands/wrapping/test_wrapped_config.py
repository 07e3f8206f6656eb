"""The wrapped configs of real stock configs: read back, and some of them built."""

import copy
import json
import os
import re
from pathlib import Path

import pytest
from mmdet.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.config import Config, ConfigDict
from mmengine.optim import DefaultOptimWrapperConstructor

from mmdet_sssd import ConfigError
from mmdet_sssd.commands.comparison.arms import read_roots
from mmdet_sssd.commands.wrapping import WrappingOptions, write_wrapped_config
from mmdet_sssd.config_tree import nested_configs
from mmdet_sssd.models.replay import find_factor, head_parameters
from mmdet_sssd.recipes import RECIPES
from mmdet_sssd_cli import making

from ...command import error_of, run_command
from ...small_runner import draw_shapes

ROOT = Path(__file__).parents[3]
RETINANET = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
YOLOX = 'mmdet::yolox/yolox_s_8xb8-300e_coco.py'  # MultiImageMixDataset, custom_hooks
CONVNEXT = (  # has its own imports
    'mmdet::convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py'
)
MASK2FORMER = 'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py'  # preprocessor at the top
VOC = 'mmdet::pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py'
LVIS = 'mmdet::lvis/mask-rcnn_r50_fpn_sample1e-3_ms-2x_lvis-v0.5.py'
GROUNDING_DINO = 'mmdet::mm_grounding_dino/grounding_dino_swin-t_finetune_8xb4_20e_cat.py'
STOCK = [
    RETINANET,
    YOLOX,
    MASK2FORMER,
    CONVNEXT,
    'mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_20e_coco.py',  # lists of heads
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_ms-3x_coco.py',  # RepeatDataset
    'mmdet::detr/detr_r50_8xb2-150e_coco.py',
]
AS_SHIPPED = copy.deepcopy({name: (x.model, x.hooks) for name, x in RECIPES.items()})
TINY = """
_base_ = ['mmdet::_base_/models/{model}', 'mmdet::_base_/datasets/coco_detection.py',
          'mmdet::_base_/default_runtime.py', 'mmdet::_base_/schedules/schedule_1x.py']
model = dict(backbone=dict(init_cfg=None))
"""


def read(path) -> dict:
    """Read a config without the scope that mmengine writes into what it inherits from a package."""
    config = Config.fromfile(path, import_custom_modules=False).to_dict()
    for _, part in nested_configs(config):
        part.pop('_scope_', None)
    return config


def read_stock(tmp_path, name) -> dict:
    (tmp_path / 'heir.py').write_text(f"_base_ = '{name}'\n")
    return read(tmp_path / 'heir.py')


def wrapped_by(tmp_path, stock=RETINANET, build=False, recipe=None, masks=False, **data) -> dict:
    options = WrappingOptions(recipe=recipe, masks=masks, data=data)
    write_wrapped_config(str(stock), tmp_path / 'out/wrapped.py', options, build)
    return read(tmp_path / 'out/wrapped.py')


def stock_file(tmp_path, text, model='retinanet_r50_fpn.py'):
    path = tmp_path / 'stock.py'
    path.write_text(TINY.format(model=model) + text)
    return path


@pytest.mark.parametrize(
    ('name', 'recipe'),
    [*((x, 'gentle') for x in STOCK), (RETINANET, 'paper'), (YOLOX, 'paper'), (YOLOX, 'lgd')],
    ids=lambda text: text.split('/')[0].removeprefix('mmdet::'),
)
def test_a_wrapped_config_is_its_stock_config_and_the_recipe(tmp_path, name, recipe):
    stock, wrapped = read_stock(tmp_path, name), wrapped_by(tmp_path, name, recipe=recipe)
    added, hooks = copy.deepcopy(AS_SHIPPED[recipe])
    if name == YOLOX:  # whose backbone has no weights
        hooks['phases'].pop('freeze_backbone', None)
    if name == YOLOX and recipe == 'gentle':  # and which SGD trains
        hooks['phases']['detach_student'] = 1 / 3
    assert wrapped.pop('model') == dict(added, student=stock.pop('model'))
    imports = stock.pop('custom_imports', dict(imports=[], allow_failed_imports=False))
    imports['imports'].append('mmdet_sssd')
    assert wrapped.pop('custom_imports') == imports
    for key, hook in stock.pop('default_hooks').items():
        hooks[key] = {**hook, **hooks.get(key, {})}
    assert wrapped.pop('default_hooks') == hooks
    assert wrapped == stock


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
    (shown,) = re.findall(
        r"```python\n(_base_ = '(mmdet::.*?)'.*?)```", (ROOT / 'README.md').read_text(), re.S
    )
    write_wrapped_config(shown[1], tmp_path / 'shown.py', build=False)
    assert (tmp_path / 'shown.py').read_text() == shown[0]


@pytest.mark.parametrize(
    ('name', 'start_level', 'trained'),
    [
        ('centernet/centernet_r18_8xb16-crop512-140e_coco.py', 0, 'wh_head'),  # one level
        ('yolo/yolov3_mobilenetv2_8xb24-320-300e_coco.py', 0, 'convs_bridge'),  # coarsest first
        ('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', 1, 'conv_reg'),
        ('yolox/yolox_tiny_8xb8-300e_coco.py', 1, 'conv_reg'),
    ],
)
def test_the_gentle_recipe_follows_the_detector(tmp_path, name, start_level, trained):
    model = MODELS.build(ConfigDict(wrapped_by(tmp_path, f'mmdet::{name}')['model']))
    teacher = model.teachers['teacher']
    assert teacher.start_level == start_level
    factors = {x: find_factor(x, teacher.head_grad) for x, *_ in head_parameters(model.student)}
    assert set(factors.values()) == {0, 1}
    assert any(trained in x for x in factors)
    assert all(factors[x] == 1 for x in factors if trained in x)
    assert all(factors[x] == 0 for x in factors if 'cls' in x or 'heat' in x)


def test_a_two_stage_head_learns_from_the_student_alone(tmp_path):
    stock = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
    model = MODELS.build(ConfigDict(wrapped_by(tmp_path, stock)['model']))
    factors = model.teachers['teacher'].head_grad
    assert all(find_factor(x, factors) == 0 for x, *_ in head_parameters(model.student))
    assert model.teachers['teacher'].neck.detach_appearance  # as in the papers


def test_classes_reach_every_stage_of_a_cascade(tmp_path):
    names = ('platelet', 'red', 'white')
    wrapped = wrapped_by(tmp_path, 'mmdet::scnet/scnet_r50_fpn_1x_coco.py', True, classes=names)
    for stage in ('train', 'val', 'test'):
        assert wrapped[f'{stage}_dataloader']['dataset']['metainfo']['classes'] == names
    student = wrapped['model']['student']
    assert student['roi_head']['semantic_head']['num_classes'] == 183  # stuff, not objects
    student['backbone']['init_cfg'] = None
    roi_head = MODELS.build(ConfigDict(student)).roi_head
    assert [head.fc_cls.out_features for head in roi_head.bbox_head] == [4, 4, 4]
    assert roi_head.mask_head.conv_logits.out_channels == 3
    assert roi_head.glbctx_head.fc.out_features == 3


WRAPPED = """
first, second = ({**_base_.train_dataloader.dataset, 'ann_file': x} for x in ('a.json', 'b.json'))
train_dataloader = dict(dataset=dict(_delete_=True, type='MultiImageMixDataset', pipeline=[],
    dataset=dict(type='ConcatDataset', datasets=[
        dict(type='RepeatDataset', times=2, dataset=first),
        dict(type='ClassBalancedDataset', oversample_thr=0.1, dataset=second)])))
val_evaluator = [dict(type='CocoMetric', ann_file='old.json'), dict(type='DumpDetResults')]
"""


def test_data_and_classes_reach_wrapped_data_sets_and_lists_of_evaluators(tmp_path):
    stock = stock_file(tmp_path, WRAPPED)
    names = tuple(f'a class with a long name, number {i}' for i in range(4))
    wrapped = wrapped_by(tmp_path, stock, data_root='cells', val_ann='val.json', classes=names)
    first, second = wrapped['train_dataloader']['dataset']['dataset']['datasets']
    assert [x['dataset']['ann_file'] for x in (first, second)] == ['a.json', 'b.json']
    evaluated = (wrapped[f'{stage}_dataloader'] for stage in ('val', 'test'))
    for dataset in (x['dataset'] for x in (first, second, *evaluated)):
        assert dataset['data_root'] == 'cells'
        assert dataset['metainfo'] == dict(classes=names)
    assert first['dataset']['data_prefix'] == dict(img='train2017/')
    assert wrapped['val_dataloader']['dataset']['ann_file'] == 'val.json'
    assert wrapped['val_evaluator'][0]['ann_file'] == 'cells/val.json'
    assert wrapped['test_evaluator']['ann_file'] == 'cells/val.json'
    assert wrapped['model']['student']['bbox_head']['num_classes'] == 4


def test_data_that_are_not_there_are_noted(tmp_path):
    data = draw_shapes(tmp_path / 'cells')
    names = dict(data_root=str(data), train_ann='annotations/train.json')
    names |= dict(val_ann='annotations/val.json', val_img='val')
    for image_folder, noted in ((None, True), ('train', False)):
        options = WrappingOptions(data={**names, 'train_img': image_folder})
        notes = write_wrapped_config(RETINANET, tmp_path / 'out.py', options, build=False)
        missing = 'it does not train yet: train_dataloader.dataset.data_prefix.img: there is no'
        assert any(x.startswith(missing) for x in notes) == noted


def test_images_that_the_stock_config_leaves_out_are_noted(tmp_path, capfd):
    data = draw_shapes(tmp_path / 'cells')
    file = data / 'annotations/train.json'
    content = json.loads(file.read_text())
    for image in content['images'][:3]:
        image['width'] = 16
    file.write_text(json.dumps(content))
    names = dict(data_root=str(data), train_ann='annotations/train.json', train_img='train')
    names |= dict(val_ann='annotations/val.json', val_img='val')
    notes = write_wrapped_config(
        RETINANET, tmp_path / 'x.py', WrappingOptions(data=names), build=False
    )
    assert any('3 of 8 images less than 32 pixels' in x for x in notes)
    assert 'WARNING' not in ''.join(capfd.readouterr())


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
    dataset = wrapped['train_dataloader']['dataset']
    for pipeline in (dataset['pipeline'], switched['switch_pipeline']):
        (step,) = [x for x in pipeline if x['type'] == 'LoadAnnotations']
        assert step == dict(type='LoadAnnotations', with_bbox=True, with_mask=True)
    assert wrapped['model']['teacher'] == dict(use_masks=True)


def test_a_file_is_inherited_by_its_relative_path(tmp_path):
    imports = "custom_imports = dict(imports=['mmdet_sssd', 'json'], allow_failed_imports=False)\n"
    wrapped = wrapped_by(tmp_path, stock_file(tmp_path, imports))
    assert wrapped['custom_imports']['imports'] == ['mmdet_sssd', 'json']
    assert (tmp_path / 'out/wrapped.py').read_text().startswith("_base_ = '../stock.py'\n")
    moved = tmp_path.with_name(f'{tmp_path.name}_moved')
    tmp_path.rename(moved)
    assert read(moved / 'out/wrapped.py') == wrapped


def test_a_file_is_inherited_from_a_folder_behind_a_link(tmp_path):
    (tmp_path / 'disk/runs').mkdir(parents=True)
    (tmp_path / 'out').symlink_to(tmp_path / 'disk/runs')
    wrapped = wrapped_by(tmp_path, stock_file(tmp_path, 'log_level = "DEBUG"\n'))
    assert wrapped['log_level'] == 'DEBUG'


def test_a_run_s_config_does_not_lead_into_that_run(tmp_path):
    text = "work_dir = 'run'\nload_from = {!r}\n"
    wrapped = wrapped_by(tmp_path, stock_file(tmp_path, text.format('coco.pth')))
    assert (wrapped['work_dir'], wrapped['load_from']) == (None, 'coco.pth')
    (tmp_path / 'out/wrapped.py').unlink()
    text = text.format('run/epoch_1.pth') + "resume = True\nload_from_at_start = 'coco.pth'\n"
    wrapped = wrapped_by(tmp_path, stock_file(tmp_path, text))
    assert [wrapped[x] for x in ('work_dir', 'resume', 'load_from')] == [None, False, 'coco.pth']


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class ForeignDecayConstructor(DefaultOptimWrapperConstructor):
    pass


def test_the_note_on_random_weights_and_on_layer_decay(tmp_path):
    out, paper = tmp_path / 'wrapped.py', WrappingOptions(recipe='paper')
    gentle = WrappingOptions(recipe='gentle')
    assert write_wrapped_config(YOLOX, out, gentle, build=False) == []  # freezes nothing
    (note,) = write_wrapped_config(YOLOX, out, paper, build=False)
    assert note.startswith('the backbone has no init_cfg with weights, so it is not frozen')
    assert write_wrapped_config(RETINANET, out, paper, build=False) == []
    # mmdet's constructor knows distillers here; others may not.
    assert write_wrapped_config(CONVNEXT, out, gentle, build=False) == []
    foreign = "optim_wrapper = dict(constructor='ForeignDecayConstructor')\n"
    stock = stock_file(tmp_path, foreign)
    (note,) = write_wrapped_config(str(stock), out, gentle, build=False)
    assert 'ForeignDecayConstructor' in note


@pytest.mark.parametrize(
    ('stock', 'options', 'message'),
    [
        ('mmdet::no/such.py', {}, r'no/such\.py cannot be read as a config'),
        ('no_such_file.py', {}, r'no_such_file\.py cannot be read as a config'),
        ('mmdet::common/lsj-100e_coco-detection.py', {}, r'has no model\.type; accepted'),
        (RETINANET, dict(data_root='/nowhere'), r'/nowhere/annotations/instances_train2017\.json'),
        (VOC, dict(train_ann='train.json'), r'train_dataloader has 2 data sets'),
        (MASK2FORMER, dict(classes='a'), r'model\.panoptic_head\.num_things_classes'),
        (LVIS, dict(classes='a'), r"train_dataloader\.dataset\.dataset\.type is 'LVISV05Dataset'"),
        ('mmdet::rpn/rpn_r50_fpn_1x_coco.py', dict(classes='a'), r'model \(RPN\) has no num_cl'),
        (GROUNDING_DINO, dict(classes='a'), r'model\.language_model'),
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
    assert run_command(*command, '--recipe', 'paper')[0] == 0
    assert f'mmdet-sssd dry-run {out}' in capsys.readouterr().out
    written = out.read_text()
    assert 'from mmdet_sssd.recipes import paper as recipe' in written
    assert error_of(*command) == f'--out {out} exists already; --force replaces it'
    assert out.read_text() == written
    assert run_command(*command, '--force')[0] == 0
    assert out.read_text() != written
    stock = stock_file(tmp_path, '')
    assert 'accepted: a .py file other than' in error_of('wrap', stock, '--out', stock, '--force')
    assert os.path.getsize(stock) > 0


def test_the_choice_of_recipes_is_complete():
    """They are written down, because the command line's help does without torch."""
    assert tuple(RECIPES) == making.RECIPES


@pytest.mark.parametrize(
    ('init_cfg', 'optimizer', 'reason', 'detached'),
    [
        (dict(type='Pretrained', checkpoint='resnet50.pth'), 'SGD', 'from trained weights', 1 / 6),
        (None, 'SGD', 'with SGD from random weights', 1 / 3),
        (None, 'AdamW', 'thousands of images', 1 / 6),
    ],
)
def test_says_why_it_chooses_gentle(tmp_path, init_cfg, optimizer, reason, detached):
    (tmp_path / 'stock.py').write_text(
        f"_base_ = '{RETINANET}'\n"
        f'model = dict(backbone=dict(init_cfg={init_cfg}))\n'
        f"optim_wrapper = dict(optimizer=dict(_delete_=True, type='{optimizer}', lr=1e-3))\n"
    )
    stock, out = str(tmp_path / 'stock.py'), tmp_path / 'out.py'
    (note,) = write_wrapped_config(stock, out, build=False)
    assert reason in note
    assert Config.fromfile(out).default_hooks.phases.detach_student == detached
    arms = read_roots(stock)  # as compare trains them
    assert arms['gentle'].default_hooks.phases.detach_student == detached
    assert not write_wrapped_config(stock, out, WrappingOptions(recipe='gentle'), build=False)
