"""Draws COCO-format data sets of shapes, five easy classes or 36 hard ones, with boxes and masks."""

import json
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as mask_api
from rich.progress import track

from ..errors import ConfigError, check
from . import pictograms

CLASSES = ('circle', 'square', 'triangle', 'star', 'cross')
MAX_OBJECTS = 7
MIN_VISIBLE = 0.35  # part of a shape that later ones must leave uncovered
MIN_AREA = 16  # visible pixels
HUE_SPREAD = 0.06  # standard deviation; the classes' typical hues are 0.2 apart on a circle of 1
MAX_TURN = np.pi / 4

INFO = dict(description='drawn by mmdet_sssd')  # annotation files begin with it

Polygon = np.ndarray  # (n, 2) corners in pixels


def draw_data_set(
    out: Path,
    train: int = 400,
    val: int = 100,
    test: int = 0,
    size: int | None = None,
    seed: int = 0,
    hard: bool = False,
) -> tuple[str, ...]:
    """Draw the splits ``train``, ``val`` and, unless it is empty, ``test``.

    The same arguments give the same files, and the first n images of a split do not depend on the
    number of images. They are 128 pixels wide, pictograms (``hard``) 96, unless ``size`` is given.
    Those drawn before are replaced.

    Returns:
        The names of the classes.

    Raises:
        ConfigError: if there are no images to train on or to validate on; if ``size`` is too small; if
            ``out`` has annotations of other images.
    """
    size = size or (96 if hard else 128)
    checked = (('train', train, 1), ('val', val, 1), ('test', test, 0), ('size', size, 32))
    for name, value, least in checked:
        check(f'--{name}', value, value >= least, f'{least} or more')
    for split in ('train', 'val', 'test'):
        _check_is_drawn(out / 'annotations' / f'{split}.json')
    for index, (split, num_images) in enumerate((('train', train), ('val', val), ('test', test))):
        if num_images:
            write_split(out, split, num_images, size, np.random.default_rng([seed, index]), hard)
    return pictograms.CLASSES if hard else CLASSES


def _check_is_drawn(path: Path) -> None:
    start = json.dumps({'info': INFO})[:-1]  # or a part of it, of a killed process
    if path.exists() and not start.startswith(path.read_text('utf-8', 'replace')[: len(start)]):
        raise ConfigError(
            f'{path} is not of drawn images, and would be overwritten; remove it, or give '
            'another folder'
        )


def write_split(
    out_dir: Path,
    split: str,
    num_images: int,
    size: int,
    rng: np.random.Generator,
    hard: bool = False,
) -> None:
    """Draw one split and write its images and its annotation file."""
    draw, classes = (draw_image, CLASSES)
    if hard:
        draw, classes = pictograms.draw_image, pictograms.CLASSES
    (out_dir / 'annotations').mkdir(parents=True, exist_ok=True)
    (out_dir / split).mkdir(exist_ok=True)
    images, annotations = [], []
    for image_id in track(range(1, num_images + 1), f'drawing {split}'):
        image, objects = draw(size, rng)
        name = f'{image_id:06d}.png'
        cv2.imwrite(str(out_dir / split / name), image)
        images.append({'id': image_id, 'file_name': name, 'width': size, 'height': size})
        for label, mask in objects:
            annotations.append(annotation(len(annotations) + 1, image_id, label, mask))
    content = {
        'info': INFO,
        'images': images,
        'annotations': annotations,
        'categories': [{'id': i, 'name': name} for i, name in enumerate(classes, 1)],
    }
    path = out_dir / 'annotations' / f'{split}.json'
    path.write_text(json.dumps(content), encoding='utf-8')


def draw_image(size: int, rng: np.random.Generator) -> tuple[np.ndarray, list]:
    """Draw one image.

    Returns:
        The image (size, size, 3) in uint8, and (class index, visible mask) for each shape that is
        visible enough.
    """
    image = background(size, rng)
    labels, masks = [], []
    for _ in range(rng.integers(1, MAX_OBJECTS + 1)):
        label = int(rng.integers(len(CLASSES)))
        radius = size * np.exp(rng.uniform(np.log(0.05), np.log(0.33)))
        polygon = shape(CLASSES[label], rng.uniform(0, size, 2), radius, rng)
        mask = np.zeros((size, size), np.uint8)
        fill(mask, polygon, 1)
        fill(image, polygon, color(label, rng))
        labels.append((label, mask.sum()))
        masks = [*(m & ~mask for m in masks), mask]  # later shapes cover earlier ones
    image = np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8)
    visible = [
        (label, mask)
        for (label, area), mask in zip(labels, masks, strict=True)
        if mask.sum() >= max(MIN_AREA, MIN_VISIBLE * area)
    ]
    return image, visible


def background(size: int, rng: np.random.Generator) -> np.ndarray:
    """Paint a shaded background with clutter: lines and flecks, which are not objects."""
    corners = rng.uniform(20, 140, (2, 2, 3)).astype(np.float32)
    image = cv2.resize(corners, (size, size)).astype(np.uint8)
    for _ in range(rng.integers(3, 9)):
        start, end = rng.integers(0, size, (2, 2)).tolist()
        cv2.line(image, start, end, rng.integers(0, 200, 3).tolist(), int(rng.integers(1, 3)))
    for _ in range(rng.integers(5, 20)):
        centre = rng.integers(0, size, 2).tolist()
        cv2.circle(image, centre, 1, rng.integers(0, 256, 3).tolist(), -1)
    return image


def shape(name: str, centre: np.ndarray, radius: float, rng: np.random.Generator) -> Polygon:
    """Make a shape's outline, rotated at random but not so far that classes look alike."""
    corners, inner = {
        'circle': (40, 1.0),
        'square': (4, 1.0),
        'triangle': (3, 1.0),
        'star': (10, 0.4),
        'cross': (12, None),
    }[name]
    if inner is None:  # a plus sign: the twelve corners in turn
        plus = [(-1, 3), (1, 3), (1, 1), (3, 1), (3, -1), (1, -1)]
        points = np.array(plus + [(-x, -y) for x, y in plus]) / np.hypot(1, 3)
    else:
        angles = np.arange(corners) * 2 * np.pi / corners
        lengths = np.where(np.arange(corners) % 2, inner, 1.0)
        points = np.stack([np.cos(angles), np.sin(angles)], 1) * lengths[:, None]
    turn = rng.uniform(-MAX_TURN, MAX_TURN)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return centre + radius * points @ rotation.T


def color(label: int, rng: np.random.Generator) -> list[int]:
    """Draw a random color (blue, green, red) that hints at the class; neighbours overlap."""
    hue = (label / len(CLASSES) + rng.normal(0, HUE_SPREAD)) % 1
    hsv = np.uint8([[[hue * 180, rng.uniform(120, 256), rng.uniform(90, 256)]]])
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0].tolist()


def fill(canvas: np.ndarray, polygon: Polygon, color: int | list[int]) -> None:
    """Fill a polygon in place."""
    cv2.fillPoly(canvas, [polygon.round().astype(np.int32)], color)


def annotation(annotation_id: int, image_id: int, label: int, mask: np.ndarray) -> dict:
    """Describe a visible mask in COCO's format, run-length encoded, as it may have holes and parts."""
    x, y, width, height = cv2.boundingRect(mask)
    segmentation = mask_api.encode(np.asfortranarray(mask))
    segmentation['counts'] = segmentation['counts'].decode()
    return {
        'id': annotation_id,
        'image_id': image_id,
        'category_id': label + 1,
        'bbox': [x, y, width, height],
        'area': int(mask.sum()),
        'iscrowd': 0,
        'segmentation': segmentation,
    }
