"""Step times of several models, taken in turn."""

import copy

import pytest
import torch

from mmdet_sssd.commands import step_times as module
from mmdet_sssd.commands.step_times import (
    StepTimes,
    Trainee,
    read_step_times,
    step_times,
    write_step_times,
)

from ..small_runner import draw_shapes, small_runner


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp('step_times')
    return small_runner(folder, draw_shapes(folder / 'shapes')).cfg


def test_steps_are_taken_in_turn_and_the_first_are_left_out(monkeypatch):
    taken = []

    class Counter:
        epoch_length = 7

        def __init__(self, name):
            self.name = name

        def step(self):
            taken.append(self.name)
            return float(len(taken))

    monkeypatch.setattr(module, 'Trainee', Counter)
    found = step_times({'one': 'a', 'other': 'b'}, warm_up=1, steps=3)
    assert taken == ['a', 'b'] * 4
    assert found['one'].seconds == [3.0, 5.0, 7.0]
    assert (found['other'].median, found['other'].epoch_length) == (6.0, 7)


def test_the_distilled_model_and_its_student_train(config):
    stock = copy.deepcopy(config)
    stock.model = config.model.student
    found = step_times({'sssd': config, 'baseline': stock}, warm_up=1, steps=2)
    for x in found.values():
        assert len(x.seconds) == 2
        assert x.median > 0
        assert x.epoch_length == 2
        assert x.device


def test_a_step_has_gradients_and_leaves_the_parameters(config):
    trainee = Trainee(config)
    before = {name: x.clone() for name, x in trainee.model.named_parameters()}
    seen = []
    step = trainee.optim_wrapper.optimizer.step
    trainee.optim_wrapper.optimizer.step = lambda *_: (
        seen.extend(x.grad is not None for x in trainee.model.parameters() if x.requires_grad),
        step(),
    )
    assert trainee.step() > 0
    assert seen
    assert all(seen)
    for name, x in trainee.model.named_parameters():
        assert torch.equal(x, before[name]), name


def test_the_same_batch_for_all_and_at_each_step(config):
    one, other = Trainee(config), Trainee(config)
    for _ in range(2):
        one.step()
    for x, y in zip(one.batch['inputs'], other.batch['inputs'], strict=True):
        assert torch.equal(x, y)
    for x, y in zip(one.batch['data_samples'], other.batch['data_samples'], strict=True):
        assert torch.equal(x.gt_instances.bboxes.tensor, y.gt_instances.bboxes.tensor)


def test_they_are_written_and_read_in_order(tmp_path):
    times = {'sssd': StepTimes([0.25, 0.5], 3, 'CPU'), 'a': StepTimes([0.125], 3, 'CPU')}
    write_step_times(tmp_path / 'x.json', times)
    found = read_step_times(tmp_path / 'x.json')
    assert found == times
    assert list(found) == ['sssd', 'a']
