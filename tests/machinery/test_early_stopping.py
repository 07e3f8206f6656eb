"""A run that mmengine's EarlyStoppingHook ends: phases, the resumed run, and the export."""

import torch
from mmengine.config import Config

from mmdet_sssd.recipes import run
from mmdet_sssd.runs import load_from_local

from ..small_runner import draw_shapes, small_runner


def stopping_runner(work_dir, shapes, patience, **options):
    stop = dict(type='EarlyStoppingHook', monitor='coco/bbox_mAP', min_delta=2.0, patience=patience)
    phases = dict(type='DistillPhasesHook', detach_student=1 / 4, teacher_until=1 / 2)
    hooks = {name: hook for name, hook in run.hooks.items() if name != 'check_dataset'}
    return small_runner(
        work_dir,
        shapes,
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=8),
        default_hooks=dict(hooks, phases=phases),
        custom_hooks=[stop],
        **options,
    )


def test_an_early_stop_keeps_the_planned_phases_and_exports_its_end(tmp_path):
    """No AP rises by 2, so a run ends after its first epoch and ``patience`` more."""
    shapes = draw_shapes(tmp_path / 'shapes')
    stopped = stopping_runner(tmp_path / 'stopped', shapes, patience=3)
    stopped.train()
    assert stopped.epoch == 4
    model = stopped.model
    assert model.teachers['teacher'].active  # half of eight epochs is over only now
    assert not model.terms['distill'].detach_student  # since a quarter of eight, not of four

    exported = Config.fromfile(tmp_path / 'stopped/export/epoch_4.py')
    assert exported.model.type == 'RetinaNet'
    (weights,) = (tmp_path / 'stopped/export').glob('epoch_4-*.pth')
    for key, value in torch.load(weights)['state_dict'].items():
        assert torch.equal(value, model.student.state_dict()[key])

    more = dict(load_from=str(tmp_path / 'stopped/epoch_4.pth'), resume=True)
    resumed = stopping_runner(tmp_path / 'resumed', shapes, patience=9, **more)
    resumed.train()
    assert resumed.epoch == 8  # as planned
    assert not resumed.model.teachers['teacher'].active
    assert load_from_local(str(tmp_path / 'resumed/epoch_8.pth'))['meta']['epoch'] == 8
    assert (tmp_path / 'resumed/export/epoch_8.py').exists()
