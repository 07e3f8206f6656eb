"""What is counted in a step, against counts by hand."""

import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmdet_sssd.commands.benchmark.flops import PartFlops
from mmdet_sssd.commands.benchmark.memory import KeptForBackward
from mmdet_sssd.commands.benchmark.parts import PARTS, Parts
from mmdet_sssd.commands.benchmark.profiling import TOP, operators_text, profile_step
from mmdet_sssd.commands.random_batch import SMALLEST, random_batch, random_boxes
from mmdet_sssd.commands.training_steps import Trainee

from ...toy_detector import TOY_MODEL

PIXELS = 2 * 8 * 8  # of two images of 64×64 at stride 8
BACKBONE, NECK, HEAD = 2 * PIXELS * 8 * 27, 2 * PIXELS * 8 * 8, 2 * PIXELS * 8
ADAPTER = 3 * 2 * PIXELS * 8 * 8 * 9


def toy_trainee(model) -> Trainee:
    cfg = Config(dict(model=model, optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1))))
    return Trainee(cfg, lambda built: random_batch(built, (64, 64), 2, 3), 'cpu')


def flops_of(model) -> PartFlops:
    trainee = toy_trainee(model)
    with Parts(trainee.model) as parts, PartFlops(parts) as flops:
        for _ in range(2):
            trainee.step()
    return flops


def test_operations_of_a_stock_detector():
    flops = flops_of(TOY_MODEL['student'])
    assert flops.forward == dict(backbone=2 * BACKBONE, neck=2 * NECK, head=2 * HEAD)
    # the images need no gradient
    assert flops.backward == dict(backbone=2 * BACKBONE, neck=4 * NECK, head=4 * HEAD)


def test_operations_of_a_distilled_one_are_kept_apart_by_part():
    flops = flops_of(TOY_MODEL)
    teacher = flops.forward.pop('teacher'), flops.backward.pop('teacher')
    expected = {'backbone': BACKBONE, 'neck': NECK, 'head': HEAD, 'second head pass': HEAD}
    expected['adapter'] = ADAPTER
    assert flops.forward == {part: 2 * count for part, count in expected.items()}
    backward = {part: 4 * count for part, count in expected.items()}
    assert flops.backward == {**backward, 'backbone': 2 * BACKBONE}
    assert 1.5 * teacher[0] < teacher[1] <= 2 * teacher[0]


def test_convolutions_with_groups_are_no_larger_than_they_are():
    conv = nn.Conv2d(8, 16, 3, padding=1, groups=4)
    x = torch.rand(2, 8, 10, 10, requires_grad=True)

    class Always:
        current = 'neck'

        def of_node(self, _):
            return 'neck'

    with PartFlops(Always()) as flops:
        conv(x).sum().backward()
    once = 2 * (2 * 10 * 10) * 16 * (8 // 4) * 9
    assert flops.forward == dict(neck=once)
    assert flops.backward == dict(neck=2 * once)


def test_parts_leave_the_model_as_it_was():
    model = toy_trainee(TOY_MODEL).model
    with Parts(model):
        pass
    assert 'loss' not in vars(model.student)
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_what_is_kept_for_the_backward_pass():
    weight, x = torch.rand(1000, requires_grad=True), torch.rand(1000)
    with KeptForBackward([weight]) as kept:
        y = weight * x  # keeps x, and the weight, which does not count
        z = (y.exp().view(10, 100) * 1).exp()  # each keeps what it makes
        assert kept.now == kept.peak == 3 * 4000
        loss = z.square().sum() + z.square().sum()  # keep z, which is kept already
        assert kept.now == 3 * 4000
        loss.backward()
    assert kept.now == 0
    assert kept.peak == 3 * 4000


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


def test_a_profile_has_the_operators_of_each_part(tmp_path):
    trainee = toy_trainee(TOY_MODEL)
    trainee.step()
    operators = profile_step(trainee, tmp_path / 'trace.json')
    assert (tmp_path / 'trace.json').stat().st_size > 1000
    assert set(operators) == set(PARTS)
    for part in ('backbone', 'neck', 'head', 'second head pass', 'adapter', 'teacher'):
        assert operators[part]['aten::convolution_backward'] > 0, part
    assert not operators['loss']['aten::convolution_backward']
    text = operators_text(operators)
    assert all(f'{part}: ' in text for part in PARTS)
    assert len(text.splitlines()) <= len(PARTS) * (TOP + 1)
