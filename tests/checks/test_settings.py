from glob import glob
from pathlib import Path

import mmdet
import pytest
from mmengine.config import Config

from mmdet_sssd import ConfigError
from mmdet_sssd.checks.settings import check_settings

ROOT = Path(__file__).parents[2]
TRAINING = ('train', 'val')


def config(**changes) -> Config:
    cfg = Config(
        dict(
            train_cfg=dict(max_epochs=2, val_interval=1),
            train_dataloader=dict(batch_size=2),
            val_dataloader=dict(batch_size=1),
            default_hooks=dict(checkpoint=dict(type='CheckpointHook', save_best='auto')),
            val_evaluator=dict(type='CocoMetric', metric=['bbox', 'segm']),
        )
    )
    cfg.merge_from_dict(changes)
    return cfg


TWO_SETS = dict(
    _delete_=True,
    type='MultiDatasetsEvaluator',
    metrics=[dict(type='CocoMetric', metric='bbox')] * 2,
    dataset_prefixes=['a', 'b'],
)


@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'default_hooks.checkpoint.save_best': 'b/coco/bbox_mAP', 'val_evaluator': TWO_SETS},
        {'default_hooks.checkpoint.save_best': 'coco/segm_mAP_75'},
        {'default_hooks.checkpoint.save_best': ['coco/bbox_mAP', 'teacher/coco/bbox_mAP']},
        {'default_hooks.checkpoint.save_best': 'mAP', 'val_evaluator.type': 'VOCMetric'},
        {'iter_param_scheduler': [], 'conv_cfg': None, 'val_evaluator_2': None, 'lr': 1},
    ],
)
def test_good_settings_pass(changes):
    check_settings(config(**changes), TRAINING)


@pytest.mark.parametrize(
    ('changes', 'named'),
    [
        ({'train_cfg.max_epochs': 0}, 'train_cfg.max_epochs is 0'),
        ({'train_cfg.val_interval': -1}, 'train_cfg.val_interval is -1'),
        ({'val_dataloader.batch_size': 0}, 'val_dataloader.batch_size is 0'),
        ({'default_hooks.mine.interval': 1}, 'default_hooks.mine has no type'),
        ({'optim_wraper': {}}, 'optim_wrapper'),
        ({'train_dataloaders': {}}, 'if it is train_dataloader,'),
        ({'default_hooks.checkpoint.save_best': 'mAP'}, 'coco/segm_mAP_l'),
        (
            {'default_hooks.checkpoint.save_best': 'coco/bbox_mAP', 'val_evaluator': TWO_SETS},
            'b/coco/bbox_mAP',
        ),
    ],
)
def test_bad_settings_are_named(changes, named):
    with pytest.raises(ConfigError) as error:
        check_settings(config(**changes), TRAINING)
    assert named in str(error.value)


def test_keys_of_mmdet_s_own_configs_are_not_taken_for_misspelt_ones():
    folder = Path(mmdet.__file__).parent / '.mim/configs'
    names = set()
    for path in glob(f'{folder}/**/*.py', recursive=True):
        lines = Path(path).read_text().splitlines()
        names |= {x.partition(' =')[0] for x in lines if x.partition(' =')[0].isidentifier()}
    assert len(names) > 200
    check_settings(Config(dict.fromkeys(names)), ('train',))


DISTILLER = dict(model=dict(type='SSSDDistiller'))


@pytest.mark.parametrize('imports', ['mmdet_sssd', ['json', 'mmdet_sssd'], ['mmdet_sssd.models']])
@pytest.mark.parametrize('used', [DISTILLER, {}])
def test_what_imports_the_package_passes(imports, used):
    check_settings(Config({**used, 'custom_imports': dict(imports=imports)}), ())


@pytest.mark.parametrize(
    ('used', 'name'),
    [
        (DISTILLER, 'SSSDDistiller'),
        (dict(model=dict(type='mmdet.SSSDDistiller')), 'SSSDDistiller'),
        (dict(default_hooks=dict(timer=None, x=dict(type='RandomStateHook'))), 'RandomStateHook'),
        (dict(custom_hooks=[dict(type='CheckDatasetHook')]), 'CheckDatasetHook'),
    ],
)
def test_a_lost_import_is_named_with_what_to_write(used, name):
    cfg = Config({**used, 'custom_imports': dict(imports=['mmpretrain.models'])})
    with pytest.raises(ConfigError) as error:
        check_settings(cfg, ())
    assert name in str(error.value)
    assert "dict(imports=['mmpretrain.models', 'mmdet_sssd'], allow_failed" in str(error.value)


def test_a_stock_config_needs_no_import():
    hooks = dict(logger=dict(type='LoggerHook'))
    check_settings(Config(dict(model=dict(type='RetinaNet'), default_hooks=hooks)), ())
