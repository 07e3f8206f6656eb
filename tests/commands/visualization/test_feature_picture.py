import cv2
import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import nn

from mmdet_sssd.commands.visualization import draw_features, look_at_features

from ...stock_detectors import stock_config

CLASSES = dict(classes=('a', 'b', 'c'), palette=[(255, 0, 0), (0, 255, 0), (0, 0, 255)])
MAPS = ['student', 'adapted student', 'teacher', 'adapted student − teacher']


def module_of(function) -> nn.Module:
    module = nn.Module()
    module.forward = function
    return module


@pytest.fixture
def distiller():
    return MODELS.build(dict(type='SSSDDistiller', student=stock_config('retinanet'))).eval()


@pytest.fixture
def sample(tmp_path):
    """An image of 120x100, shown to the model as 60x50 pixels of an input of 64x64."""
    path = str(tmp_path / 'image.png')
    cv2.imwrite(path, np.full((100, 120, 3), 128, np.uint8))
    sample = DetDataSample(
        metainfo=dict(
            img_path=path, ori_shape=(100, 120), img_shape=(50, 60), scale_factor=(0.5, 0.5)
        )
    )
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[7.0, 15, 25, 41], [31, 7, 57, 25]]), labels=torch.tensor([0, 2])
    )
    return sample


def look(distiller, sample):
    return look_at_features(distiller, torch.rand(1, 3, 64, 64), sample)


def test_maps_are_the_activity_of_what_the_loss_compares(distiller, sample):
    sizes = (8, 4, 2, 1, 1)
    adapted, teacher = (tuple(3 * torch.randn(1, 32, n, n) + 5 for n in sizes) for _ in range(2))
    distiller.terms['distill'].adapter = module_of(lambda *_: adapted)
    distiller.teachers['teacher'].neck = module_of(lambda *_: teacher)
    features = look(distiller, sample)

    def normed(x):
        x = x[0].double().flatten(1).numpy()
        return (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)

    assert list(features.maps) == MAPS
    for level, size in enumerate(sizes):
        a, t = normed(adapted[level]), normed(teacher[level])
        for name, expected in zip(MAPS[1:], (a, t, a - t), strict=True):
            expected = np.sqrt((expected**2).mean(0)).reshape(size, size)
            np.testing.assert_allclose(features.maps[name][level], expected, atol=1e-5)


def test_predictions_of_a_teacher_that_is_the_student_are_the_student_s(distiller, sample):
    distiller.student.test_cfg.score_thr = 0.0
    distiller.teachers['teacher'].neck = module_of(lambda feats, *_: feats)
    features = look(distiller, sample)
    ours, expected = features.teacher_predictions, features.student_predictions
    assert len(expected) > 0
    assert torch.equal(ours.bboxes, expected.bboxes)
    assert expected.bboxes.max() > 40  # input pixels, not the original's halved again
    assert expected.bboxes[:, 2].max() <= 60


def test_the_picture_has_a_row_for_each_level_on_one_colour_scale(distiller, sample):
    features = look(distiller, sample)
    figure = draw_features(features, CLASSES, score_thr=0.0)
    levels = {}
    for axes in figure.axes:
        place = axes.get_subplotspec()
        if axes.images and place.colspan.start > 0:
            levels.setdefault(place.rowspan.start, []).append(axes)
    assert [len(row) for row in levels.values()] == [4] * 5
    assert [len(x) for x in features.regions[-1]] == [1, 1]  # which is normalised to 0
    for level, row in levels.items():
        high = max(features.maps[name][level].max().item() for name in MAPS)
        assert {x.images[0].get_clim() for x in row} == {(0, high or 1)}
        assert [x.get_title().split(': ')[-1] for x in row] == MAPS
        assert all(len(x.patches) == 2 for x in row)  # the labelled boxes
        assert {(x.get_xlim(), x.get_ylim()) for x in row} == {((0, 60), (50, 0))}


def test_pixels_are_drawn_where_they_look_at_the_image(distiller, sample):
    """That is around j · stride, where mmdet's anchors are."""
    features = look(distiller, sample)
    first = next(x for x in draw_features(features, CLASSES).axes if 'level 0' in x.get_title())
    for x in range(0, 60, 8):
        for y in range(0, 50, 8):
            value = features.maps['student'][0][y // 8, x // 8]
            assert drawn_at(first, x, y) == pytest.approx(value.item())


def drawn_at(axes, x, y):
    """What an axes' image has at a point, in input pixels."""
    (image,) = axes.images
    left, right, bottom, top = image.get_extent()
    values = image.get_array()
    row = int((y - top) / (bottom - top) * values.shape[0])
    return values[row, int((x - left) / (right - left) * values.shape[1])]


def test_only_levels_that_the_teacher_makes_are_drawn(sample):
    config = dict(type='SSSDDistiller', student=stock_config('retinanet'), start_level=1)
    features = look(MODELS.build(config).eval(), sample)
    sizes = [(4, 4), (2, 2), (1, 1), (1, 1)]
    assert [tuple(x.shape[1:]) for x in features.regions] == sizes
    assert all([tuple(x.shape) for x in maps] == sizes for maps in features.maps.values())
    titles = [x.get_title() for x in draw_features(features, CLASSES).axes]
    levels = [x.partition(',')[0] for x in titles if x.startswith('level')]
    assert levels == [f'level {i}' for i in range(1, 5)]
