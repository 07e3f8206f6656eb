"""Options that few need: reused assignments, recomputed activations, loss weights, saved teachers."""

import pytest
import torch
from mmdet.registry import MODELS

from mmdet_sssd import ConfigError

from ..distillers import (
    MSE,
    TOY,
    assert_equal,
    build,
    gradients,
    losses_of,
    pretrained,
)
from ..stock_detectors import stock_config
from .test_cheaper_steps import count_calls
from .test_teacher_weights import teacher_losses


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


def test_activations_that_are_computed_again_change_nothing():
    plain = build('retinanet')
    saving = build('retinanet', teacher=dict(with_cp=True), adapter=dict(with_cp=True))
    kept, results = [], []
    for model in (plain, saving):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, sizes=sizes: sizes.append(x.numel()) or x, lambda x: x
        ):
            losses = losses_of(model)
        kept.append(sum(sizes))
        results.append((losses, gradients(model, model.parse_losses(losses)[0])))
    (expected, expected_grads), (losses, grads) = results
    assert_equal(losses, expected)
    torch.testing.assert_close(grads, expected_grads)
    assert kept[1] < 0.95 * kept[0]


def test_each_loss_has_a_weight_of_its_own():
    plain = teacher_losses(build('faster_rcnn'))
    weighed = build('faster_rcnn', teacher_loss_weight={'rpn': 0.5, 'cls': 0})
    factors = dict(loss_rpn_cls=0.5, loss_rpn_bbox=0.5, loss_cls=0, loss_bbox=1)
    expected = {f'teacher.{key}': plain[f'teacher.{key}'] * x for key, x in factors.items()}
    torch.testing.assert_close(teacher_losses(weighed), expected)


@pytest.mark.parametrize('weights', [dict(cls='1'), dict(mask=0.5)])
def test_weights_that_are_no_numbers_or_match_no_loss_are_refused(weights):
    with pytest.raises(ConfigError, match=r'^model\.teacher_loss_weight '):
        losses_of(build(TOY, teacher_loss_weight=weights))


def test_a_teacher_in_the_checkpoint_is_resumed_without_its_file(tmp_path):
    file = tmp_path / 'teacher.pth'
    torch.manual_seed(5)
    weights = MODELS.build(TOY).state_dict()
    torch.save(dict(state_dict=weights), file)

    def distiller(in_checkpoint):
        teacher = {**pretrained(), 'checkpoint': str(file), 'in_checkpoint': in_checkpoint}
        return build(TOY, type='Distiller', teachers=dict(large=teacher), terms=dict(mse=MSE))

    state, without = distiller(True).state_dict(), distiller(False)
    theirs = {key for key in state if key.startswith('teachers.')}
    assert theirs == {f'teachers.large.detector.{key}' for key in weights}
    without.load_state_dict(state)
    assert without.state_dict().keys() == state.keys() - theirs
    file.unlink()
    resumed = distiller(True)
    resumed.load_state_dict(state)
    assert_equal(dict(resumed.teachers['large'].detector.state_dict()), dict(weights))
    with pytest.raises(RuntimeError, match=r'Unexpected key.* "teachers\.large\.x"'):
        resumed.load_state_dict({**state, 'teachers.large.x': torch.ones(1)})
    with pytest.raises(ConfigError, match=r'checkpoint is .*teacher\.pth'):
        losses_of(distiller(True))
