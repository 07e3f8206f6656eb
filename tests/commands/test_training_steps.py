"""Training steps of several models, taken in turn."""

import pytest
from mmengine.config import Config

from mmdet_sssd.commands.training_steps import Trainee, seconds_in_turn

from ..distillers import assert_equal
from ..stock_detectors import demo_batch, stock_config


def trainee(**settings) -> Trainee:
    cfg = dict(
        model=stock_config('retinanet'), optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-3))
    )
    return Trainee(Config({**cfg, **settings}), demo_batch, 'cpu')


def test_steps_are_taken_in_turn_and_the_first_are_left_out():
    taken, rounds = [], []

    class Counter:
        def __init__(self, name):
            self.name = name

        def step(self):
            taken.append(self.name)
            return float(len(taken))

    found = seconds_in_turn({'one': Counter('a'), 'other': Counter('b')}, 1, 3, rounds.append)
    assert taken == ['a', 'b'] * 4
    assert found == {'one': [3.0, 5.0, 7.0], 'other': [4.0, 6.0, 8.0]}
    assert rounds == [1, 2, 3, 4]


def test_steps_have_gradients_and_leave_parameters_and_batch():
    trained, seen = trainee(), []
    before = {name: x.clone() for name, x in trained.model.named_parameters()}
    boxes = [x.gt_instances.bboxes.clone() for x in trained.batch['data_samples']]
    step = trained.optim_wrapper.optimizer.step
    trained.optim_wrapper.optimizer.step = lambda *_: (
        seen.extend(x.grad is not None for x in trained.model.parameters() if x.requires_grad),
        step(),
    )
    for _ in range(2):
        assert trained.step() > 0
    assert seen
    assert all(seen)
    assert_equal(dict(trained.model.named_parameters()), before)
    assert_equal([x.gt_instances.bboxes for x in trained.batch['data_samples']], boxes)


def test_a_data_preprocessor_beside_the_model_is_its():
    model = stock_config('retinanet')
    outside = model.pop('data_preprocessor')
    assert trainee(model=model, data_preprocessor=outside).model.data_preprocessor.mean[0] == (
        pytest.approx(outside.mean[0])
    )
