"""Contexts of replay: statistics and gradients of heads."""

import copy

import pytest
import torch
from mmengine.config import ConfigDict
from torch import nn

from mmdet_sssd.models import SSSDDistiller
from mmdet_sssd.models.replay import batch_stats_used, head_grad_scaled

from ..stock_detectors import NUM_CLASSES, demo_batch

YOLOX = dict(
    type='YOLOX',
    data_preprocessor=dict(type='DetDataPreprocessor', pad_size_divisor=32),
    backbone=dict(type='CSPDarknet', deepen_factor=0.33, widen_factor=0.125),
    neck=dict(type='YOLOXPAFPN', in_channels=[32, 64, 128], out_channels=32, num_csp_blocks=1),
    bbox_head=dict(type='YOLOXHead', num_classes=NUM_CLASSES, in_channels=32, feat_channels=32),
    train_cfg=dict(assigner=dict(type='SimOTAAssigner')),
    test_cfg=dict(score_thr=0.0, nms=dict(type='nms', iou_threshold=0.65)),
)


class Head(nn.Module):
    """One norm that learns, and one that is frozen in training, as in stock's ``norm_eval``."""

    def __init__(self):
        super().__init__()
        self.norm, self.frozen = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def train(self, mode=True):
        super().train(mode)
        self.frozen.eval()
        return self


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.bbox_head = nn.BatchNorm2d(3), Head()


def test_the_head_in_eval_normalises_the_teacher_s_features_as_in_training():
    torch.manual_seed(0)
    model = SSSDDistiller(ConfigDict(YOLOX)).eval()
    head = model.student.bbox_head
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.fill_(3.0)  # of features unlike the teacher's
    seen = []
    head.register_forward_hook(lambda _, inputs, outputs: seen.append((inputs[0], outputs)))
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        data = demo_batch(model)
        model.predict_with_teacher('teacher', data['inputs'], data['data_samples'], rescale=False)
        feats, outputs = seen[0]
        trained = copy.deepcopy(head).train()(feats)
        by_running_statistics = head(feats)
    for kind in range(3):  # scores, boxes, objectness
        for level in range(3):
            torch.testing.assert_close(outputs[kind][level], trained[kind][level])
            other = by_running_statistics[kind][level]
            assert not torch.allclose(outputs[kind][level], other, atol=1e-2)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())


def test_what_training_freezes_and_other_modules_keep_their_statistics():
    detector = Detector().eval()
    x = torch.randn(2, 3, 4, 4) + 5
    with batch_stats_used(detector):
        normed = detector.bbox_head.norm(x)
        assert normed.mean().abs() < 1e-5
        assert detector.bbox_head.frozen(x).mean() > 4
        assert detector.backbone(x).mean() > 4
        assert not detector.bbox_head.training
        pixel = x[:1, :, :1, :1]
        torch.testing.assert_close(detector.bbox_head.norm(pixel), pixel / (1 + 1e-5) ** 0.5)
        with pytest.raises(ValueError, match='expected 4D'):
            detector.bbox_head.norm(x[0])
    assert detector.bbox_head.norm(x).mean() > 4
    assert torch.equal(detector.bbox_head.norm.running_mean, torch.zeros(3))
    assert detector.bbox_head.norm.num_batches_tracked == 0


def test_a_shared_parameter_has_a_factor_for_each_of_its_names():
    detector = Detector()
    detector.bbox_head.cls, detector.bbox_head.reg = nn.Linear(1, 1, False), nn.Linear(1, 1, False)
    detector.bbox_head.reg.weight = detector.bbox_head.cls.weight
    x = torch.ones(1, 1)
    with head_grad_scaled(detector, {'cls': 0.5, 'reg': 0}):
        (3 * detector.bbox_head.cls(x) + 5 * detector.bbox_head.reg(x)).sum().backward()
    assert detector.bbox_head.cls.weight.grad.item() == 1.5
