"""Draws features and predictions of student and teacher for an image, level by level."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from mmdet.registry import VISUALIZERS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import get_box_tensor
from mmdet.visualization.palette import get_palette
from mmengine.structures import InstanceData
from torch import Tensor

from ...models import SSSDDistiller
from ...models.adapters import instance_norm
from ...models.label_encoder_teacher import LabelledObjects
from ...models.replay import fresh_samples
from .predictions import draw_objects

CELL_WIDTH = 3.2  # inches
DPI = 150
IMAGE_WIDTH = round(CELL_WIDTH * DPI)  # pixels; the figure then shows text at its drawn size
BACKGROUND = 0.4  # grey value between outlines and class colours


@dataclass
class ImageFeatures:
    """Features and predictions of a distiller for one image, on the CPU. Boxes are in input pixels.

    Attributes:
        sample: The image's data sample, with its labels in ``gt_instances``.
        input_size: Height and width of the input, padding included.
        maps: By name, one map of shape (h_p, w_p) per level: the root mean square over channels of
            the instance-normalised features, 1 on average. ``'student'``: the neck's features;
            ``'adapted student'`` and ``'teacher'``: what the distillation loss compares;
            ``'adapted student − teacher'``: their difference.
        regions: Per level, the objects' regions, in [0, 1], of shape (n, h_p, w_p).
        soft_regions: Whether regions hold the share of each pixel that an object covers.
        student_predictions: The student's predictions.
        teacher_predictions: Predictions of the student's head on the teacher's features.
    """

    sample: DetDataSample
    input_size: tuple[int, int]
    maps: dict[str, list[Tensor]]
    regions: list[Tensor]
    soft_regions: bool
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
    feats = distiller.extract_feat(inputs)
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
        maps={name: [_activity(x) for x in levels] for name, levels in maps.items()},
        regions=[x.maps[0, 1:].cpu() for x in objects.regions([x.shape[-2:] for x in feats])],
        soft_regions=soft_regions,
        student_predictions=by_student.pred_instances.cpu(),
        teacher_predictions=by_teacher.pred_instances.cpu(),
    )


def draw_features(features: ImageFeatures, dataset_meta: dict, score_thr: float = 0.3) -> Figure:
    """Draw a grid with one row per feature level.

    The first column shows the image with its labels, the student's predictions and the teacher's;
    the next ones the four maps with the labelled boxes, on one colour scale per row (mmengine's
    ``draw_featmap`` stretches each map to its own range); the last one the regions onto which the
    teacher paints the objects.

    Args:
        features: The result of :func:`look_at_features`.
        dataset_meta: Class names and palette of the data set.
        score_thr: Lowest score to draw, in [0, 1].
    """
    width, height = _content_size(features.sample)
    rows, columns = max(len(features.regions), 3), 2 + len(features.maps)
    cell_height = CELL_WIDTH * height / width + 0.35
    figure = Figure((columns * CELL_WIDTH, rows * cell_height), dpi=DPI, layout='constrained')
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis('off')
    _draw_images(grid[:, 0], features, dataset_meta, score_thr)
    colors = _class_colors(features.sample.gt_instances, dataset_meta)
    for level, regions in enumerate(features.regions):
        *row, last = grid[level, 1:]
        maps = [x[level].numpy() for x in features.maps.values()]
        high = max(x.max() for x in maps) or 1  # a level of one pixel is normalised to 0
        for axes, name, values in zip(row, features.maps, maps, strict=True):
            drawn = _draw_level(axes, name, values, features, vmin=0, vmax=high)
        size = f'{regions.shape[2]}×{regions.shape[1]} pixels'
        row[0].set_title(f'level {level}, {size}: {row[0].get_title()}', fontsize=10)
        figure.colorbar(drawn, ax=row, pad=0.01, shrink=0.9)
        painted, is_soft = _paint(regions, colors), features.soft_regions
        _draw_level(last, 'label regions', painted, features, centred=not is_soft)
    return figure


def _activity(feats: Tensor) -> Tensor:
    """Reduce features of shape (1, C, h, w) to their root mean square over channels."""
    return feats[0].float().square().mean(0).sqrt().cpu()


def _content_size(sample: DetDataSample) -> tuple[int, int]:
    """Compute the image's width and height within the input."""
    (height, width), scale = sample.ori_shape, sample.get('scale_factor', (1, 1))
    return round(width * scale[0]), round(height * scale[1])


def _class_colors(instances: InstanceData, dataset_meta: dict) -> list[tuple[float, ...]]:
    """Look up the colour of each object's class, as the visualizer does."""
    labels = instances.labels.tolist()
    palette = get_palette(dataset_meta.get('palette'), max(labels, default=0) + 1)
    return [tuple(channel / 255 for channel in palette[label]) for label in labels]


def _draw_images(
    column: Sequence[Axes], features: ImageFeatures, dataset_meta: dict, score_thr: float
) -> None:
    """Draw the image three times: with labels, the student's and the teacher's predictions."""
    visualizer = VISUALIZERS.build(
        dict(type='DetLocalVisualizer', name='draw_features', line_width=2)
    )
    visualizer.dataset_meta = dataset_meta
    sample = features.sample
    scale = torch.tensor(sample.get('scale_factor', (1, 1))).repeat(2)
    for axes, title, given in (
        (column[0], 'labels', sample.gt_instances),
        (column[1], "student's predictions", features.student_predictions),
        (column[2], "teacher's predictions (it sees the labels)", features.teacher_predictions),
    ):
        objects = InstanceData(bboxes=get_box_tensor(given.bboxes) / scale, labels=given.labels)
        if 'scores' in given:
            objects.scores = given.scores
            objects = objects[objects.scores >= score_thr]
        axes.imshow(draw_objects(visualizer, sample.img_path, objects, IMAGE_WIDTH))
        axes.set_title(title, fontsize=10)


def _paint(regions: Tensor, colors: list[tuple[float, ...]]) -> np.ndarray:
    """Paint regions of shape (n, h, w) in their objects' colours, the smallest on top.

    An object's colour is as opaque in a pixel as the share that the object covers.
    """
    picture = np.full((*regions.shape[1:], 3), BACKGROUND)
    sizes = regions.sum((1, 2))
    for index in sorted(range(len(colors)), key=lambda i: -sizes[i]):
        share = regions[index].numpy()[..., None]
        picture = (1 - share) * picture + share * colors[index]
    return picture


def _draw_level(
    axes: Axes,
    title: str,
    values: np.ndarray,
    features: ImageFeatures,
    centred: bool = True,
    **kwargs: float,
) -> AxesImage:
    """Draw a level of shape (h, w) or (h, w, 3) and the boxes, without the image's padding.

    If ``centred``, pixel j is drawn around j · stride, where convolutions, anchors and binary regions
    place it, and the last one is repeated up to the border. Otherwise it is drawn from j · stride to
    (j + 1) · stride, as soft regions place it.
    """
    height, width = features.input_size
    extent = (0, width, height, 0)
    if centred:
        dy, dx = height / values.shape[0], width / values.shape[1]
        values = np.pad(values, [(0, 1), (0, 1), (0, 0)][: values.ndim], mode='edge')
        extent = (-dx / 2, width + dx / 2, height + dy / 2, -dy / 2)
    drawn = axes.imshow(values, extent=extent, interpolation='nearest', **kwargs)
    right, bottom = _content_size(features.sample)
    axes.set(xlim=(0, right), ylim=(bottom, 0))
    axes.set_title(title, fontsize=10)
    for x1, y1, x2, y2 in get_box_tensor(features.sample.gt_instances.bboxes).tolist():
        axes.add_patch(
            Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor='white', linewidth=0.6)
        )
    return drawn
