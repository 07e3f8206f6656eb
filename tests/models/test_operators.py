"""Operators that teacher and distance launch: what bounds a step of small batches on a GPU."""

from importlib import import_module

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from mmdet_sssd.commands.benchmark.counts import Operators
from mmdet_sssd.models import FeatureAdapter, JSDistanceLoss, LabelEncoderTeacher
from mmdet_sssd.models.adapters import instance_norm

SIDE, CHANNELS, OBJECTS = 320, 256, 8


def retinanet_levels() -> list[torch.Tensor]:
    """Levels of RetinaNet for two images of 320×320."""
    return [torch.randn(2, CHANNELS, n, n) for n in (40, 20, 10, 5, 3)]


def batch() -> list[DetDataSample]:
    samples = []
    for _ in range(2):
        corners = torch.rand(OBJECTS, 2) * SIDE / 2
        sample = DetDataSample(metainfo=dict(img_shape=(SIDE, SIDE)))
        sample.gt_instances = InstanceData(
            bboxes=torch.cat([corners, corners + SIDE / 4], 1), labels=torch.arange(OBJECTS)
        )
        samples.append(sample)
    return samples


@pytest.mark.parametrize(
    ('settings', 'most'),
    [(dict(), 225), (dict(refine_convs=1), 195), (dict(soft_regions=False), 230)],
)
def test_the_teacher_takes_few_operators_and_never_waits(settings, most):
    teacher = LabelEncoderTeacher(CHANNELS, num_classes=80, **settings)
    feats, images, samples = retinanet_levels(), torch.zeros(2, 3, SIDE, SIDE), batch()
    with Operators() as operators:
        teacher(feats, images, samples)
    assert operators.names.total() <= most, operators.names.most_common()
    assert not operators.waits.total()


def test_the_distance_of_all_levels_takes_few_operators_and_never_waits(monkeypatch):
    distances = import_module(JSDistanceLoss.__module__)._JSDistances
    monkeypatch.setattr(distances, 'blockwise', False)  # as on a GPU
    adapter, loss = FeatureAdapter(CHANNELS), JSDistanceLoss()
    student, teacher = retinanet_levels(), retinanet_levels()
    with Operators() as operators:
        loss(*([instance_norm(x) for x in levels] for levels in (adapter(student), teacher)))
    assert operators.names.total() <= 105, operators.names.most_common()
    assert not operators.waits.total()
