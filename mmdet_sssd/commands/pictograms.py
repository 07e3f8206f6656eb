"""Draws images that a small detector cannot finish: pictograms of 36 classes that differ in detail."""

from functools import cache

import cv2
import numpy as np

BODIES = dict(circle=0.6, square=0.5, triangle=0.38, hexagon=0.55, plus=0.42, gear=0.5)
"""Radius of the mark that a body of radius 1 has room for, by body."""
MARKS = ('dot', 'ring', 'bar', 'bars', 'cross', 'dots')
CLASSES = tuple(f'{body}-{mark}' for body in BODIES for mark in MARKS)
MAX_ITEMS = 9
RADIUS = (0.07, 0.3)  # of the image's side
LABELLED = 0.7  # part of the items; the others are bodies without a mark, marks alone, and strokes
MIN_VISIBLE = (0.4, 0.6)  # share of a body, and of its mark, below which it has no label
TEMPLATE_SIDES = (16, 32, 64)  # each sharp at its own scale
DRAWN_SIDE = 256
REACH = 1.05  # radius at a template's edge


def draw_image(size: int, rng: np.random.Generator) -> tuple[np.ndarray, list]:
    """Draw one image: pictograms rotated, stretched, cut off and covering each other, on a texture.

    Bodies without a mark, marks without a body and strokes look alike but are not objects. Colors say
    nothing about the class.

    Returns:
        The image (size, size, 3) in uint8, and (class index, visible mask) for each pictogram of which
        enough is visible to tell the class.
    """
    image = texture(size, rng)
    found = []
    for _ in range(rng.integers(2, MAX_ITEMS + 1)):
        label = int(rng.integers(len(CLASSES)))
        kind = 'pictogram' if rng.random() < LABELLED else rng.choice(['body', 'mark', 'stroke'])
        body, mark, areas = stroke(size, rng) if kind == 'stroke' else warped(label, size, rng)
        color = rng.uniform(0, 255, 3)
        cover = mark if kind == 'mark' else body
        if kind != 'mark':
            paint(image, body, color)
        if kind in ('pictogram', 'mark'):
            paint(image, mark, (color + rng.uniform(80, 176, 3)) % 256)
        for _, *seen, _ in found:
            for part in seen:
                part *= 1 - cover
        if kind == 'pictogram':
            found.append((label, body, mark, areas))
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.2, 1.0))
    image += rng.uniform(2, 16) * rng.standard_normal(image.shape, np.float32)
    visible = [
        (label, (body > 0.5).astype(np.uint8))
        for label, body, mark, areas in found
        if (np.array([body.sum(), mark.sum()]) >= np.multiply(MIN_VISIBLE, areas)).all()
    ]
    return np.clip(image, 0, 255).astype(np.uint8), visible


def texture(size: int, rng: np.random.Generator) -> np.ndarray:
    """Paint noise of several scales and, on half of the images, stripes; float32."""
    image = np.full((size, size, 3), rng.uniform(50, 200, 3), np.float32)
    for cells in (2, 5, 12, 32):
        grid = rng.uniform(-1, 1, (cells, cells, 3)).astype(np.float32) * rng.uniform(5, 45)
        image += cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)
    if rng.random() < 0.5:
        y, x = np.mgrid[:size, :size] / size
        direction, waves = rng.uniform(0, np.pi), rng.uniform(3, 16)
        phase = 2 * np.pi * waves * (x * np.cos(direction) + y * np.sin(direction))
        image += (np.sin(phase)[..., None] * rng.uniform(-40, 40, 3)).astype(np.float32)
    return image


def warped(
    label: int, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Place a pictogram: any rotation, somewhat stretched, centre anywhere in the image.

    Returns:
        Opacity (size, size) of body and of mark, and the area that each has if not cut off, (2,).
    """
    radius = size * np.exp(rng.uniform(*np.log(RADIUS)))
    side = next((x for x in TEMPLATE_SIDES if x >= 2 * radius), TEMPLATE_SIDES[-1])
    picture = template(label, side)
    turn, before, stretch = rng.uniform(0, 2 * np.pi), rng.uniform(0, np.pi), rng.normal(0, 0.12)
    matrix = rotation(turn) @ np.diag(np.exp([stretch, -stretch])) @ rotation(before)
    matrix *= 2 * REACH * radius / side
    shift = rng.uniform(0, size, 2) - matrix @ np.full(2, (side - 1) / 2)
    body, mark = cv2.split(cv2.warpAffine(picture, np.column_stack([matrix, shift]), (size, size)))
    return body, mark, picture.sum((0, 1)) * np.linalg.det(matrix)


def rotation(angle: float) -> np.ndarray:
    """Make the matrix (2, 2) of a rotation."""
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def stroke(size: int, rng: np.random.Generator) -> tuple[np.ndarray, None, None]:
    """Draw a line across part of the image; opacity (size, size)."""
    canvas = np.zeros((size, size), np.float32)
    start, end = rng.integers(0, size, (2, 2)).tolist()
    cv2.line(canvas, start, end, 1.0, max(1, int(size * rng.uniform(0.01, 0.06))))
    return canvas, None, None


def paint(image: np.ndarray, opacity: np.ndarray, color: np.ndarray) -> None:
    """Paint a color on an image of float32, in place."""
    image += opacity[..., None] * (color.astype(np.float32) - image)


@cache
def template(label: int, side: int) -> np.ndarray:
    """Draw a class upright: opacity (side, side, 2) of body and mark, in float32."""
    name, mark = CLASSES[label].split('-')
    canvases = np.zeros((2, DRAWN_SIDE, DRAWN_SIDE), np.float32)
    cv2.fillPoly(canvases[0], [pixels(outline(name))], 1.0)
    draw_mark(canvases[1], mark, BODIES[name])
    sides = [cv2.resize(x, (side, side), interpolation=cv2.INTER_AREA) for x in canvases]
    return np.ascontiguousarray(np.stack(sides, 2))


def outline(body: str) -> np.ndarray:
    """Make the corners (n, 2) of a body of radius 1 around the origin."""
    if body == 'plus':
        corners = [(-2, 5), (2, 5), (2, 2), (5, 2), (5, -2), (2, -2)]
        return np.array(corners + [(-x, -y) for x, y in corners]) / np.hypot(2, 5)
    count, inner = dict(
        circle=(60, 1), square=(4, 1), triangle=(3, 1), hexagon=(6, 1), gear=(24, 0.75)
    )[body]
    angles = np.arange(count) * 2 * np.pi / count
    lengths = np.where(np.arange(count) // 2 % 2, inner, 1.0) if inner < 1 else np.ones(count)
    return np.stack([np.cos(angles), np.sin(angles)], 1) * lengths[:, None]


def draw_mark(canvas: np.ndarray, mark: str, radius: float) -> None:
    """Draw a mark in the middle of a template, in place."""

    def line(start: tuple[float, float], end: tuple[float, float]) -> None:
        corners = pixels(radius * np.array([start, end]))
        cv2.line(canvas, *corners.tolist(), 1.0, round(0.4 * unit))

    unit = radius * DRAWN_SIDE / 2 / REACH
    centre = (DRAWN_SIDE // 2,) * 2
    if mark == 'dot':
        cv2.circle(canvas, centre, round(0.6 * unit), 1.0, -1)
    elif mark == 'ring':
        cv2.circle(canvas, centre, round(0.75 * unit), 1.0, round(0.4 * unit))
    elif mark == 'bar':
        line((-0.8, 0), (0.8, 0))
    elif mark == 'bars':
        line((-0.7, -0.5), (0.7, -0.5))
        line((-0.7, 0.5), (0.7, 0.5))
    elif mark == 'cross':
        line((-0.8, 0), (0.8, 0))
        line((0, -0.8), (0, 0.8))
    else:
        for angle in np.arange(3) * 2 * np.pi / 3:
            spot = pixels(0.65 * radius * np.array([[np.cos(angle), np.sin(angle)]]))[0]
            cv2.circle(canvas, spot.tolist(), round(0.35 * unit), 1.0, -1)


def pixels(points: np.ndarray) -> np.ndarray:
    """Convert points (n, 2) around the origin to pixels of a drawn template."""
    return ((points / REACH + 1) * DRAWN_SIDE / 2).round().astype(np.int32)
