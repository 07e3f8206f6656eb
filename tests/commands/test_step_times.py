"""Step times of several models, taken in turn."""

import copy

import pytest
import torch
from mmengine.config import Config

from mmdet_sssd.commands.step_times import (
    StepTimes,
    _first_batch,
    _idle,
    read_step_times,
    step_times,
    write_step_times,
)

from ..small_runner import draw_shapes, small_runner


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp('step_times')
    return small_runner(folder, draw_shapes(folder / 'shapes')).cfg


def test_the_distilled_model_and_its_student_train(config):
    stock = copy.deepcopy(config)
    stock.model = config.model.student
    found = step_times({'sssd': config, 'baseline': stock}, warm_up=1, steps=2)
    for x in found.values():
        assert len(x.seconds) == 2
        assert x.median > 0
        assert x.epoch_length == 2
        assert x.device


def test_the_batch_is_the_same_for_all(config):
    (one, length), (other, _) = _first_batch(config), _first_batch(config)
    assert length == 2
    for x, y in zip(one['inputs'], other['inputs'], strict=True):
        assert torch.equal(x, y)
    for x, y in zip(one['data_samples'], other['data_samples'], strict=True):
        assert torch.equal(x.gt_instances.bboxes.tensor, y.gt_instances.bboxes.tensor)


def test_steps_without_the_teacher_are_those_of_the_schedule():
    hook = dict(type='TeacherScheduleHook', until=0.5)
    assert _idle(Config(dict(model={}))) == 0
    assert _idle(Config(dict(model={}, default_hooks=dict(logger=None, teacher=hook)))) == 0.5
    hook = dict(type='mmdet_sssd.TeacherScheduleHook', every=4)
    assert _idle(Config(dict(model={}, custom_hooks=[hook]))) == 0.75
    assert _idle(Config(dict(model=dict(teachers=dict(large={})), custom_hooks=[hook]))) == 0


def test_they_are_written_and_read_in_order(tmp_path):
    times = {'sssd': StepTimes([0.25, 0.5], 3, 'CPU'), 'a': StepTimes([0.125], 3, 'CPU')}
    write_step_times(tmp_path / 'x.json', times)
    found = read_step_times(tmp_path / 'x.json')
    assert found == times
    assert list(found) == ['sssd', 'a']
