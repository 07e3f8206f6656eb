import copy
import json
import re
from pathlib import Path

import pytest
import yaml
from mmdet.registry import MODELS
from mmengine.config import Config

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(x for x in ROOT.glob('configs/*/*.py') if x.parent.name != '_base_')
COCO = sorted(ROOT.glob('configs/sssd/*_coco.py'))
TEACHERS = {  # LGD's settings: context box, detached appearance; and learning rates
    'retinanet': (True, False, 0.01),
    'fcos': (False, False, 0.01),
    'faster-rcnn': (False, True, 0.02),
}
PHASES = ['distill_coef', 'detach_student', 'freeze_backbone']


@pytest.fixture(autouse=True)
def _own_data(tmp_path, monkeypatch):
    """A data set of 40 images and 2 classes, for the configs that read one."""
    content = {
        'images': [{'id': i} for i in range(40)],
        'annotations': [],
        'categories': [{'id': 3, 'name': 'platelet'}, {'id': 9, 'name': 'cell'}],
    }
    (tmp_path / 'annotations').mkdir()
    (tmp_path / 'annotations/train.json').write_text(json.dumps(content))
    monkeypatch.setenv('SSSD_DATA_ROOT', str(tmp_path))
    monkeypatch.setenv('SSSD_MAX_EPOCHS', '36')
    monkeypatch.setenv('SSSD_BATCH_SIZE', '8')


def build(cfg):
    model = copy.deepcopy(cfg.model)
    for part in (model, model.get('student', {})):
        if 'backbone' in part:
            part.backbone.init_cfg = None  # no download
    return MODELS.build(model)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_config_builds_and_survives_being_written_out(path):
    cfg = Config.fromfile(path)
    model = build(cfg)
    again = Config.fromstring(cfg.pretty_text, '.py')
    assert again.model == cfg.model
    if path.stem.startswith('sssd'):
        assert model.teacher.num_classes == (80 if path in COCO else 2)
        assert cfg.custom_imports.imports == ['mmdet_sssd']
        assert cfg.default_hooks.checkpoint.type == 'SafeCheckpointHook'


@pytest.mark.parametrize('path', COCO, ids=lambda path: path.stem)
def test_coco_configs_have_the_papers_settings(path):
    cfg = Config.fromfile(path)
    detector = next(name for name in TEACHERS if f'sssd_{name}' in path.stem)
    context, detach, lr = TEACHERS[detector]
    assert cfg.model.teacher == dict(add_context_box=context, detach_appearance=detach)
    assert cfg.optim_wrapper.optimizer == dict(type='SGD', lr=lr, momentum=0.9, weight_decay=0.0001)
    assert cfg.optim_wrapper.clip_grad == dict(type='value', clip_value=1.0)
    assert 'paramwise_cfg' not in cfg.optim_wrapper
    warm_up, drops = cfg.param_scheduler
    assert (warm_up.end, warm_up.start_factor, warm_up.by_epoch) == (1000, 0.001, False)
    run = cfg.train_cfg.max_iters
    assert run * cfg.train_dataloader.batch_size == 180_000 * 2  # of 8 processes
    assert drops.milestones == [run * 8 // 12, run * 32 // 36]
    assert cfg.default_hooks.detach_student.first == 1 / 6
    assert cfg.default_hooks.freeze_backbone.first == 1 / 9
    assert cfg.default_hooks.distill_coef.max_decays == 1
    checkpoint = cfg.default_hooks.checkpoint
    assert (checkpoint.by_epoch, checkpoint.interval, checkpoint.max_keep_ckpts) == (
        False,
        10000,
        3,
    )
    resize = cfg.train_dataloader.dataset.pipeline[2]
    if 'ms-2x' in path.stem:
        assert resize.scales == [(1333, side) for side in (640, 672, 704, 736, 768, 800)]
    else:
        assert (resize.type, resize.scale) == ('Resize', (1333, 800))


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


def test_the_config_of_the_readme_builds(tmp_path):
    (text,) = re.findall(
        r"```python\n(_base_ = 'mmdet::.*?)```", (ROOT / 'README.md').read_text(), re.S
    )
    path = tmp_path / 'my_config.py'
    path.write_text(text)
    cfg = Config.fromfile(path)
    assert build(cfg).teacher.num_classes == 80
    shipped = Config.fromfile(COCO[0]).default_hooks
    assert [cfg.default_hooks[name].type for name in PHASES] == [
        shipped[name].type for name in PHASES
    ]


def test_the_metafile_lists_every_config_but_the_demo():
    (metafile,) = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    models = yaml.safe_load((ROOT / metafile).read_text())['Models']
    listed = {ROOT / model['Config'] for model in models}
    assert listed == {path for path in CONFIGS if path.parent.name != 'demo'}
    assert all(
        model['Name'] == Path(model['Config']).stem == model['Name'].lower() for model in models
    )
