"""Writes a trained detector's detections as annotations of unlabelled images."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmdet.apis import inference_detector, init_detector
from mmengine.device import get_device
from mmengine.structures import InstanceData
from rich.progress import track

from ..datasets.coco_file import read_coco
from ..errors import ConfigError, check
from ..runs import AtomicLocalBackend


def make_pseudo_labels(
    config: str | os.PathLike,
    checkpoint: str | os.PathLike,
    ann_file: str | os.PathLike,
    img_dir: str | os.PathLike,
    out: str | os.PathLike,
    score_thr: float = 0.4,
    device: str | None = None,
) -> tuple[int, int]:
    """Write a detector's detections to a COCO annotation file.

    Each image passes the pipeline of the config's ``test_dataloader``. The file lists all images of
    ``ann_file``, the detector's classes as categories 1, 2, …, and an annotation with its ``score``
    for each box.

    Args:
        config: Config of a detector, or of a distiller, whose student is used.
        checkpoint: Its weights.
        ann_file: COCO file that lists the images; only ``images`` is read.
        img_dir: Folder of the images.
        out: File to write; its folder is created if needed.
        score_thr: Lowest score to write, in [0, 1].
        device: Device to predict on, such as ``'cpu'``. Defaults to a GPU if there is one.

    Returns:
        The numbers of images and boxes.

    Raises:
        ConfigError: if ``score_thr`` is out of range, ``ann_file`` is not a COCO file, an image is
            missing, or ``out`` is ``ann_file``.
        FileNotFoundError: if config or checkpoint do not exist.
    """
    check('--score-thr', score_thr, 0 <= score_thr <= 1, '0 to 1')
    if Path(out).resolve() == Path(ann_file).resolve():
        raise ConfigError(f'--out {out} is also --ann; write to another file')
    images = _read_images(ann_file, img_dir)
    detector = init_detector(
        str(config), str(checkpoint), device=device or get_device(), cfg_options={}
    )
    annotations: list[dict[str, Any]] = []
    for image in track(images, 'predicting'):
        path = os.path.join(img_dir, image['file_name'])
        found = inference_detector(detector, path).pred_instances.cpu()
        for annotation in _annotations(found, score_thr):
            ids = dict(id=len(annotations) + 1, image_id=image['id'])
            annotations.append({**ids, **annotation})
    names = detector.dataset_meta['classes']
    categories = [dict(id=i, name=name) for i, name in enumerate(names, 1)]
    content = dict(images=images, annotations=annotations, categories=categories)
    AtomicLocalBackend().put_text(json.dumps(content), out)
    return len(images), len(annotations)


def _read_images(ann_file: str | os.PathLike, img_dir: str | os.PathLike) -> list[dict]:
    """Read the images of a COCO file, and check that their files exist."""
    images = read_coco(str(ann_file), '--ann', {'images': {'id', 'file_name'}})['images']
    paths = [Path(img_dir, image['file_name']) for image in images]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise ConfigError(
            f'{len(missing)} of the {len(paths)} images of {ann_file} are missing, first '
            f'{missing[0]}; set --img-dir to the folder that file_name is relative to'
        )
    return images


def _annotations(detections: InstanceData, score_thr: float) -> Iterator[dict[str, Any]]:
    """Turn boxes (x1, y1, x2, y2) in the image's pixels into annotations without ids."""
    kept = detections[detections.scores >= score_thr].numpy()
    for (x1, y1, x2, y2), label, score in zip(
        kept.bboxes.tolist(), kept.labels.tolist(), kept.scores.tolist(), strict=True
    ):
        width, height = x2 - x1, y2 - y1
        if width >= 1 and height >= 1:  # training ignores smaller boxes
            yield dict(
                category_id=label + 1,
                bbox=[x1, y1, width, height],
                area=width * height,
                iscrowd=0,
                score=score,
            )
