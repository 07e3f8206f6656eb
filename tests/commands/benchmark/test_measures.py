"""What is counted in a step, against counts by hand."""

import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmdet_sssd.commands.benchmark.counts import Operators, StepCounter, count_step
from mmdet_sssd.commands.benchmark.memory import peak_kept
from mmdet_sssd.commands.random_batch import SMALLEST, random_batch, random_boxes
from mmdet_sssd.commands.training_steps import Trainee

from ...toy_detector import TOY_MODEL

PIXELS = 2 * 8 * 8  # of two images of 64×64 at stride 8
BACKBONE, NECK, HEAD = 2 * PIXELS * 8 * 27, 2 * PIXELS * 8 * 8, 2 * PIXELS * 8


def toy_trainee(model) -> Trainee:
    cfg = Config(dict(model=model, optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1))))
    return Trainee(cfg, lambda built: random_batch(built, (64, 64), 2, 3), 'cpu')


def test_a_step_is_counted_without_the_optimizer():
    trainee = toy_trainee(TOY_MODEL['student'])
    parts = count_step(trainee).values()
    found = {kind: sum(x[kind] for x in parts) for kind in ('flops', 'operators')}
    assert found['flops'] == 2 * BACKBONE + 3 * NECK + 3 * HEAD  # the images need no gradient
    with StepCounter() as counter:
        trainee.step()
    assert found['operators'] < counter.totals()['operators']
    assert counter.totals()['flops'] == found['flops']


def test_grouped_convolutions_are_no_larger_than_they_are():
    conv = nn.Conv2d(8, 16, 3, padding=1, groups=4)
    x = torch.rand(2, 8, 10, 10, requires_grad=True)
    with StepCounter() as counter:
        conv(x).sum().backward()
    once = 2 * (2 * 10 * 10) * 16 * (8 // 4) * 9
    assert counter.totals()['flops'] == 3 * once


def test_operators_and_waits_by_hand():
    x = torch.rand(4, 4)
    with Operators() as operators:
        y = x.view(16).exp()  # a view, and one operator
        float(y.sum())  # two, one of which waits
        y[y > 0] = 1  # two, one of which waits
        y[torch.tensor([0])] = 2  # by an index: no wait
    assert operators.waits.total() == 2
    found = operators.names
    assert (found['exp'], found['sum'], found['gt'], found['index_put_']) == (1, 1, 1, 2)


def test_what_is_kept_for_the_backward_pass():
    weight, x = torch.rand(1000, requires_grad=True), torch.rand(1000)

    def step():
        y = weight * x  # keeps x, and the weight, which does not count
        z = (y.exp().view(10, 100) * 1).exp()  # each keeps what it makes
        (z.square().sum() + z.square().sum()).backward()  # keep z, which is kept already

    assert peak_kept(step, [weight]) == 3 * 4000
    assert peak_kept(lambda: (step(), step()), [weight]) == 3 * 4000  # the first's is freed


def test_boxes_lie_in_the_image_and_are_of_all_sizes():
    x1, y1, x2, y2 = random_boxes(500, (100, 200), torch.Generator().manual_seed(0)).unbind(1)
    assert min(x1.min(), y1.min()) >= 0
    assert x2.max() <= 200
    assert y2.max() <= 100
    sides = x2 - x1
    assert SMALLEST - 0.01 <= sides.min() < 10
    assert sides.max() > 180


@pytest.mark.parametrize('num_objects', [0, 5])
def test_the_batch_is_the_same_for_stock_and_distilled(num_objects):
    one, other = (
        random_batch(toy_trainee(model).model, (64, 96), 2, num_objects)
        for model in (TOY_MODEL, TOY_MODEL['student'])
    )
    for x, y in zip(one['inputs'], other['inputs'], strict=True):
        assert x.shape == (3, 64, 96)
        assert torch.equal(x, y)
    for x, y in zip(one['data_samples'], other['data_samples'], strict=True):
        assert len(x.gt_instances) == num_objects
        assert torch.equal(x.gt_instances.labels, y.gt_instances.labels)
        assert torch.equal(x.gt_instances.bboxes, y.gt_instances.bboxes)
