"""Draws features and predictions of student and teacher for an image, level by level."""

from collections.abc import Sequence
from dataclasses import dataclass

import mmcv
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from mmdet.registry import VISUALIZERS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import get_box_tensor
from mmengine.structures import InstanceData
from torch import Tensor

from ...models import SSSDDistiller
from ...models.adapters import instance_norm
from ...models.label_encoder_teacher import LabelledObjects
from ...models.replay import fresh_samples

CELL_WIDTH = 3.2  # inches
DPI = 150
IMAGE_WIDTH = round(CELL_WIDTH * DPI)  # pixels; the figure then shows text at its drawn size


@dataclass
class ImageFeatures:
    """Features and predictions of a distiller for one image, on the CPU. Boxes are in input pixels.

    Attributes:
        sample: The image's data sample, with its labels in ``gt_instances``.
        input_size: Height and width of the input, padding included.
        start_level: Index of the first level that the teacher makes; those before it are left out.
        maps: By name, one map of shape (h_p, w_p) per level: the root mean square over channels of
            the instance-normalised features, 1 on average. ``'student'``: the neck's features;
            ``'adapted student'`` and ``'teacher'``: what the distillation loss compares;
            ``'adapted student − teacher'``: their difference.
        regions: Per level, the regions onto which the teacher paints the objects, in [0, 1], of shape
            (n, h_p, w_p).
        student_predictions: The student's predictions.
        teacher_predictions: Predictions of the student's head on the teacher's features.
    """

    sample: DetDataSample
    input_size: tuple[int, int]
    start_level: int
    maps: dict[str, list[Tensor]]
    regions: list[Tensor]
    student_predictions: InstanceData
    teacher_predictions: InstanceData


@torch.no_grad()
def look_at_features(
    distiller: SSSDDistiller, inputs: Tensor, sample: DetDataSample
) -> ImageFeatures:
    """Run student, adapter and teacher on one image.

    Args:
        distiller: The model, in evaluation mode.
        inputs: The preprocessed image of shape (1, 3, H, W).
        sample: Its data sample, with ``gt_instances`` in input pixels.
    """
    start_level = distiller.teachers['teacher'].start_level
    feats = distiller.extract_feat(inputs)[start_level:]
    student = [instance_norm(x) for x in feats]
    neck = distiller.teachers['teacher'].neck
    adapted = [instance_norm(x) for x in distiller.terms['distill'].adapter(feats)]
    teacher = [instance_norm(x) for x in neck(feats, inputs, [sample])]
    maps = {
        'student': student,
        'adapted student': adapted,
        'teacher': teacher,
        'adapted student − teacher': [x - t for x, t in zip(adapted, teacher, strict=True)],
    }
    use_masks = getattr(neck, 'use_masks', False)
    soft_regions = getattr(neck, 'soft_regions', False)
    objects = LabelledObjects(inputs, [sample], use_masks, soft_regions)
    (by_student,) = distiller.predict(inputs, fresh_samples([sample]), rescale=False)
    (by_teacher,) = distiller.predict_with_teacher(
        'teacher', inputs, fresh_samples([sample]), rescale=False
    )
    return ImageFeatures(
        sample=sample.cpu(),
        input_size=tuple(inputs.shape[-2:]),
        start_level=start_level,
        maps={name: [_activity(x) for x in levels] for name, levels in maps.items()},
        regions=[x.maps[0, 1:].cpu() for x in objects.regions([x.shape[-2:] for x in feats])],
        student_predictions=by_student.pred_instances.cpu(),
        teacher_predictions=by_teacher.pred_instances.cpu(),
    )


def draw_features(features: ImageFeatures, dataset_meta: dict, score_thr: float = 0.3) -> Figure:
    """Draw features and predictions, a row per distilled level.

    The first column has the labels and the predictions; the others have the maps. Those of a level
    share one colour scale, so their strengths can be compared (the visualizer's ``draw_featmap``
    stretches each map to its own range).

    Args:
        features: The result of :func:`look_at_features`.
        dataset_meta: Class names and palette of the data set.
        score_thr: Lowest score to draw, in [0, 1].
    """
    width, height = _content_size(features.sample)
    rows, columns = max(len(features.regions), 3), 1 + len(features.maps)
    cell_height = CELL_WIDTH * height / width + 0.35
    figure = Figure((columns * CELL_WIDTH, rows * cell_height), dpi=DPI, layout='constrained')
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis('off')
    _draw_images(grid[:, 0], features, dataset_meta, score_thr)
    for level in range(len(features.regions)):
        row = grid[level, 1:]
        maps = [x[level].numpy() for x in features.maps.values()]
        high = max(x.max() for x in maps) or 1  # a level of one pixel is normalised to 0
        for axes, name, values in zip(row, features.maps, maps, strict=True):
            drawn = _draw_level(axes, values, features, high)
            axes.set_title(name, fontsize=10)
        size = '×'.join(map(str, maps[0].shape[::-1]))
        number = features.start_level + level
        row[0].set_title(f'level {number}, {size} pixels: student', fontsize=10)
        figure.colorbar(drawn, ax=row, pad=0.01, shrink=0.9)
    return figure


def _activity(feats: Tensor) -> Tensor:
    """Reduce features of shape (1, C, h, w) to their root mean square over channels."""
    return feats[0].float().square().mean(0).sqrt().cpu()


def _content_size(sample: DetDataSample) -> tuple[int, int]:
    """Compute the image's width and height within the input."""
    (height, width), scale = sample.ori_shape, sample.get('scale_factor', (1, 1))
    return round(width * scale[0]), round(height * scale[1])


def _draw_images(
    column: Sequence[Axes], features: ImageFeatures, dataset_meta: dict, score_thr: float
) -> None:
    """Draw the image three times: with labels, the student's and the teacher's predictions."""
    visualizer = VISUALIZERS.build(
        dict(type='DetLocalVisualizer', name='draw_features', line_width=2)
    )
    visualizer.dataset_meta = dataset_meta
    sample = features.sample
    image = mmcv.imread(sample.img_path, channel_order='rgb')
    enlarged = IMAGE_WIDTH / image.shape[1]  # so that labels are legible on small images
    image = mmcv.imresize(image, (IMAGE_WIDTH, round(image.shape[0] * enlarged)))
    scale = enlarged / torch.tensor(sample.get('scale_factor', (1, 1))).repeat(2)
    for axes, title, given in (
        (column[0], 'labels', sample.gt_instances),
        (column[1], "student's predictions", features.student_predictions),
        (column[2], "teacher's predictions (it sees the labels)", features.teacher_predictions),
    ):
        objects = InstanceData(bboxes=get_box_tensor(given.bboxes) * scale, labels=given.labels)
        if 'scores' in given:
            objects.scores = given.scores
            objects = objects[objects.scores >= score_thr]
        drawn = DetDataSample(gt_instances=objects)
        visualizer.add_datasample('image', image, drawn, draw_pred=False)
        axes.imshow(visualizer.get_image())
        axes.set_title(title, fontsize=10)


def _draw_level(axes: Axes, values: np.ndarray, features: ImageFeatures, high: float) -> AxesImage:
    """Draw a map of shape (h, w), from 0 to ``high``, and the boxes, without the image's padding.

    Pixel j is drawn around j · stride, where convolutions and anchors place it; the last one is
    repeated up to the border.
    """
    height, width = features.input_size
    dy, dx = height / values.shape[0], width / values.shape[1]
    drawn = axes.imshow(
        np.pad(values, (0, 1), mode='edge'),
        extent=(-dx / 2, width + dx / 2, height + dy / 2, -dy / 2),
        interpolation='nearest',
        vmin=0,
        vmax=high,
    )
    right, bottom = _content_size(features.sample)
    axes.set(xlim=(0, right), ylim=(bottom, 0))
    for x1, y1, x2, y2 in get_box_tensor(features.sample.gt_instances.bboxes).tolist():
        axes.add_patch(
            Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor='white', linewidth=0.6)
        )
    return drawn
