"""The teacher's features in the student's head: its batch norms, and parameters that it shares."""

import copy

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import nn

from ..distillers import TOY, assert_equal, build, gradients, losses_of
from ..stock_detectors import demo_batch
from ..toy_detector import ToyDetector


class NormedHead(nn.Module):
    """Has a norm that learns, and one that is frozen in training, as in stock's ``norm_eval``."""

    num_classes = 2

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.frozen = nn.Conv2d(8, 1, 1), *map(nn.BatchNorm2d, (8, 8))

    def train(self, mode=True):
        super().train(mode)
        self.frozen.eval()
        return self


@MODELS.register_module()
class NormedDetector(ToyDetector):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.bbox_head = NormedHead()

    def predict(self, batch_inputs, batch_data_samples, rescale=True):
        (x,), head = self.extract_feat(batch_inputs), self.bbox_head
        self.seen = x, head.norm(x), head.frozen(x), head.norm(x[:1, :, :1, :1])
        return batch_data_samples


def test_head_norms_use_the_batch_unless_frozen_or_of_one_pixel():
    """To predict on the teacher's features in eval mode changes nothing."""
    model = build({**TOY, 'type': 'NormedDetector'}).eval()
    for norm in (model.bbox_head.norm, model.bbox_head.frozen):
        norm.running_mean.fill_(3.0)  # of features unlike the teacher's
    before, data = copy.deepcopy(model.state_dict()), demo_batch(model)
    with torch.no_grad():
        model.predict_with_teacher('teacher', *data.values(), rescale=False)
        feats = model.extract_feat(data['inputs'])
        taught = model.teachers['teacher'].neck(feats, *data.values())
    assert_equal(dict(model.state_dict()), dict(before))
    assert not any(module.training for module in model.modules())
    x, normed, frozen, pixel = model.student.seen
    assert_equal(x, taught[0])
    torch.testing.assert_close(normed, F.batch_norm(x, None, None, training=True))
    by_running_statistics = (x - 3) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(frozen, by_running_statistics)
    torch.testing.assert_close(pixel, by_running_statistics[:1, :, :1, :1])


@MODELS.register_module()
class SharingDetector(ToyDetector):
    """Shares the weight of two layers of its head."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.bbox_head.cls, self.bbox_head.reg = nn.Conv2d(8, 1, 1), nn.Conv2d(8, 1, 1)
        self.bbox_head.reg.weight = self.bbox_head.cls.weight

    def loss(self, batch_inputs, batch_data_samples):
        (x,), head = self.extract_feat(batch_inputs), self.bbox_head
        return {f'loss_{key}': getattr(head, key)(x).square().mean() for key in ('cls', 'reg')}


def test_a_shared_parameter_has_a_factor_for_each_of_its_names():
    student, weight = {**TOY, 'type': 'SharingDetector'}, 'student.bbox_head.cls.weight'
    plain, model = build(student), build(student, teacher_head_grad={'cls': 0.5, 'reg': 0})
    losses = losses_of(model)
    found = gradients(model, losses['teacher.loss_cls'] + losses['teacher.loss_reg'])[weight]
    expected = gradients(plain, losses_of(plain)['teacher.loss_cls'])[weight]
    assert expected.any()
    torch.testing.assert_close(found, 0.5 * expected)
