from glob import glob
from pathlib import Path

import mmdet
import pytest
from mmengine.config import Config

from mmdet_sssd import ConfigError
from mmdet_sssd.checks.dry_run import warnings_listed
from mmdet_sssd.checks.settings import check_settings

TRAINING = ('train', 'val')


def config(**changes) -> Config:
    cfg = Config(
        dict(
            model=dict(type='RetinaNet'),
            train_cfg=dict(max_epochs=2, val_interval=1),
            train_dataloader=dict(batch_size=2),
            val_dataloader=dict(batch_size=1),
            default_hooks=dict(checkpoint=dict(type='CheckpointHook', save_best='auto')),
            val_evaluator=dict(type='CocoMetric', metric=['bbox', 'segm']),
        )
    )
    cfg.merge_from_dict(changes)
    return cfg


@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'default_hooks.checkpoint.save_best': 'coco/segm_mAP_75'},
        {'default_hooks.checkpoint.save_best': ['coco/bbox_mAP', 'coco/bbox_mAP_50']},
        {'train_cfg.max_epochs': 12.0},
        {'default_hooks.mine': None},
        {'default_hooks.checkpoint.save_best': 'mAP', 'val_evaluator.type': 'VOCMetric'},
        {
            'default_hooks.checkpoint.save_best': 'coco/cat_precision',
            'val_evaluator.classwise': True,
        },
        {
            'default_hooks.checkpoint.save_best': 'coco/AR@1000',
            'val_evaluator.metric': 'proposal_fast',
        },
        {'iter_param_scheduler': [], 'conv_cfg': None, 'val_evaluator_2': None, 'lr': 1},
        {'activation_checkpointing': ['roi_head.bbox_head']},
        {
            'model.type': 'SSSDDistiller',
            'activation_checkpointing': ['student.neck', 'backbone.layer1'],
        },
    ],
)
def test_good_settings_pass(changes):
    check_settings(config(**changes), TRAINING)


@pytest.mark.parametrize(
    ('changes', 'named'),
    [
        ({'train_cfg.max_epochs': 0}, 'train_cfg.max_epochs is 0'),
        ({'train_cfg.val_interval': -1}, 'train_cfg.val_interval is -1'),
        ({'load_from': ''}, "load_from is ''"),
        ({'val_dataloader.batch_size': 0}, 'val_dataloader.batch_size is 0'),
        ({'default_hooks.mine.interval': 1}, 'default_hooks.mine has no type'),
        (
            {
                'model.type': 'SSSDDistiller',
                'activation_checkpointing': 'student.roi_head.bbox_head',
            },
            "activation_checkpointing is 'student.roi_head.bbox_head'",
        ),
        ({'default_hooks.checkpont': None}, 'leaves out no hook; did you mean checkpoint?'),
        ({'optim_wraper': {}}, 'optim_wrapper'),
        ({'model': None}, 'the config has no model.type'),
        ({'optim_wrapper.optimizer.lr': '1e-3'}, "optim_wrapper.optimizer.lr is '1e-3'"),
        ({'train_dataloaders': {}}, 'if it is train_dataloader,'),
        ({'default_hooks.checkpoint.save_best': 'mAP'}, 'coco/segm_mAP_l'),
        ({'default_hooks.checkpoint.save_best': 'teacher/coco/bbox_mAP'}, 'coco/segm_mAP_l'),
        ({'train_cfg.max_iters': 0.5}, 'train_cfg.max_iters is 0.5'),
    ],
)
def test_bad_settings_are_named(changes, named):
    with pytest.raises(ConfigError) as error:
        check_settings(config(**changes), TRAINING)
    assert named in str(error.value)


@pytest.mark.parametrize(
    ('changes', 'warned'),
    [
        ({}, True),
        ({'model.backbone.init_cfg': dict(type='Pretrained', checkpoint='a.pth')}, False),
        ({'model.backbone.frozen_stages': -1}, False),
        ({'load_from': 'a.pth'}, False),
    ],
)
def test_layers_that_stay_random_are_warned_of(changes, warned):
    backbone = dict(type='ResNet', frozen_stages=1, init_cfg=None)
    cfg = config(**{'model': dict(type='RetinaNet', backbone=backbone), **changes})
    with warnings_listed() as warnings:
        check_settings(cfg, TRAINING)
    assert [x.startswith('model.backbone.frozen_stages is 1') for x in warnings] == [True] * warned


def test_keys_of_mmdet_s_own_configs_pass():
    folder = Path(mmdet.__file__).parent / '.mim/configs'
    names = set()
    for path in glob(f'{folder}/**/*.py', recursive=True):
        lines = Path(path).read_text().splitlines()
        names |= {x.partition(' =')[0] for x in lines if x.partition(' =')[0].isidentifier()}
    assert len(names) > 200
    check_settings(config(**dict.fromkeys(names - {'model'})), ('train',))
