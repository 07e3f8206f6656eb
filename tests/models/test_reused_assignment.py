"""Assignments that depend on predictions, reused in the teacher's pass."""

import pytest
import torch
from mmdet.registry import MODELS

from mmdet_sssd import ConfigError

from ..distillers import (
    assert_equal,
    build,
    losses_of,
)
from ..stock_detectors import stock_config
from .test_cheaper_steps import count_calls


def reusing(name, reuse_assignment=True):
    student = stock_config(name)
    if name == 'rtmdet':
        student.bbox_head.exp_on_reg = True
    return build(student, reuse_assignment=reuse_assignment)


@pytest.mark.parametrize('name', ['yolox', 'rtmdet', 'deformable_detr', 'faster_rcnn'])
def test_the_student_s_assignment_is_not_worked_out_again(name):
    """Of two images. An R-CNN's proposals differ."""
    anew, reused = (reusing(name, x) for x in (False, True))
    expected, counts = count_calls(anew), count_calls(reused)
    for model in (anew, reused):
        losses_of(model)
    assignments = [path for path in expected if path.endswith('.assign')]
    for path in assignments:
        assert counts[path] * (1 if 'roi_head' in path else 2) == expected[path], path
    assert 2 in (counts[path] for path in assignments)


def test_boxes_inside_out_have_no_lower_bound_of_giou():
    """So ``reuse_assignment`` is refused where they can be; GIoU's loss is in [0, 2] otherwise."""
    target = torch.tensor([[40.0, 40, 60, 60]])
    inverted = torch.tensor([[60.0, 60, 40, 40]])
    loss = MODELS.build(dict(type='GIoULoss'))
    far = [loss(inverted + x * torch.tensor([1, 1, -1, -1]), target).item() for x in (0, 10, 30)]
    assert far[0] == 0 > far[1] > far[2]
    with pytest.raises(ConfigError, match=r'^model\.reuse_assignment '):
        build('rtmdet', reuse_assignment=True)


def test_the_same_predictions_learn_in_both_passes(monkeypatch):
    """YOLOX, whose assignment depends on its predictions: as many positives, so one average factor."""
    model, sampled = reusing('yolox'), []
    sampler = type(model.student.bbox_head.sampler)
    sample = sampler.sample

    def record(self, assign_result, *args, **kwargs):
        sampled.append(assign_result.gt_inds)
        return sample(self, assign_result, *args, **kwargs)

    monkeypatch.setattr(sampler, 'sample', record)
    losses_of(model)
    assert len(sampled) == 4
    assert_equal(sampled[:2], sampled[2:])
