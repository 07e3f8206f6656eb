"""Checks the data sets and evaluators that a config names, before training."""

import math
import os.path as osp
from collections import Counter
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmengine.config import Config, ConfigDict
from mmengine.fileio import list_from_file

from ..datasets import evaluator_configs, leaf_configs, read_coco
from ..errors import ConfigError, did_you_mean, is_number, warn
from .settings import coco_metrics

READ = ('id', 'image_id', 'category_id', 'bbox', 'area')  # of an annotation, by CocoDataset
TOLERANCE = 2  # pixels that a box may leave its image by
MANY = 0.01  # share of such boxes that is reported


def check_annotations(cfg: Config, stages: tuple[str, ...] = ('train', 'val')) -> None:
    """Check the data sets and evaluators of a config.

    Files on non-local storage are not checked.

    Raises:
        ConfigError: if a file or folder is missing, or an annotation file cannot be read or does not
            mean what the config says; the message names the config key.
    """
    files: dict[str, list[str]] = {}  # annotation files by stage
    for stage in stages:
        files[stage] = []
        for key, dataset in leaf_configs(cfg, f'{stage}_dataloader.dataset'):
            if not dataset.get('backend_args'):
                files[stage] += _check_dataset(dataset, key)
        for key, evaluator in evaluator_configs(cfg, f'{stage}_evaluator'):
            if not evaluator.get('backend_args'):
                _check_exists(f'{key}.ann_file', evaluator.get('ann_file'))
                _check_evaluator(evaluator, files[stage], key)
    for path in set(files.get('train', ())) & set(files.get('val', ())):
        warn(f'{path} is both trained on and validated on, so AP says nothing of other images.')


def _check_exists(key: str, path: str | None) -> None:
    if path and '://' not in path and not osp.exists(path):
        raise ConfigError(
            f'{key}: there is no {path} (looked for from {osp.abspath(osp.curdir)}); set the '
            "data set's data_root, or this key, to the place of the data"
        )


def _check_dataset(dataset: ConfigDict, key: str) -> list[str]:
    """Check a data set; list its annotation file, if it has one."""
    root, file = (dataset.get(name) or '' for name in ('data_root', 'ann_file'))
    path = file and osp.join(root, file)
    _check_exists(f'{key}.ann_file', path)
    for name, prefix in (dataset.get('data_prefix') or {}).items():
        _check_exists(f'{key}.data_prefix.{name}', osp.join(root, prefix or ''))
    cls = dataset.get('type', '')
    cls = DATASETS.get(cls) if isinstance(cls, str) else cls
    if isinstance(cls, type) and issubclass(cls, CocoDataset) and osp.isfile(path):
        labels = CocoFile(path, key)
        classes = _read_classes(dataset, key) or list(cls.METAINFO.get('classes') or ())
        labels.check_categories()
        labels.check_classes(classes)
        if cls is CocoDataset:  # subclasses have their own order and annotations
            labels.check_order(classes)
            labels.check_entries(bool((dataset.get('filter_cfg') or {}).get('filter_empty_gt')))
    return [path] if path else []


def _read_classes(dataset: ConfigDict, key: str) -> list[str]:
    classes = (dataset.get('metainfo') or {}).get('classes') or ()
    if not isinstance(classes, str):
        return list(classes)
    if not osp.isfile(classes):  # which mmengine would read
        raise ConfigError(
            f'{key}.metainfo.classes is {classes!r}, and there is no file of that name; '
            'accepted: a tuple of names, with a comma behind a single one, or a file of them'
        )
    return list_from_file(classes)


def _check_evaluator(evaluator: ConfigDict, files: list[str], key: str) -> None:
    """Refuse a file that COCO's metric cannot read, or that has other images than the data set."""
    path, metrics = evaluator.get('ann_file'), coco_metrics(evaluator)
    if not (metrics and path and osp.isfile(path)):
        return
    labels = CocoFile(path, key)
    if lacking := [x for x in labels.annotations if 'iscrowd' not in x]:
        labels.refuse(
            f"{len(lacking)} annotations without iscrowd, which COCO's metric needs (0, or 1 for a "
            f'crowd), the first {lacking[0]}'
        )
    if 'segm' in metrics:
        for annotation in labels.annotations:
            if not _is_mask(annotation.get('segmentation')):
                labels.refuse(
                    f'annotation {annotation.get("id")} with segmentation '
                    f"{str(annotation.get('segmentation'))[:80]}, which COCO's metric cannot read; "
                    'accepted: polygons of three or more points, or an RLE with counts and size'
                )
    if len(files) == 1 and osp.isfile(files[0]) and not osp.samefile(path, files[0]):
        predicted = CocoFile(files[0], key)
        names = [{x['id']: x.get('file_name') for x in y.images} for y in (predicted, labels)]
        if not names[0].items() <= names[1].items():
            labels.refuse(f'other images than {files[0]}, which are predicted; give both one file')


def _is_mask(segmentation: Any) -> bool:
    """Tell whether pycocotools reads a segmentation."""
    if isinstance(segmentation, dict):
        return {'counts', 'size'} <= segmentation.keys()
    polygons = segmentation if isinstance(segmentation, list) else ()
    return bool(polygons) and all(isinstance(x, list) and len(x) >= 6 for x in polygons)


class CocoFile:
    """A COCO annotation file.

    Args:
        path: Its path.
        key: Config key of the data set or evaluator that reads it.

    Raises:
        ConfigError: if it is not a COCO file, or from the methods, if it fails their check.
    """

    def __init__(self, path: str, key: str) -> None:
        self.path, self.key = path, key
        content = read_coco(path, f'{key}.ann_file')
        self.images, self.annotations = content['images'], content['annotations']
        self.categories = {x['id']: x['name'] for x in content['categories']}

    def refuse(self, found: str) -> None:
        """Raise an error that says what the file has."""
        raise ConfigError(f'{self.key}.ann_file: {self.path} has {found}')

    def check_categories(self) -> None:
        """Check the images' sizes and the annotations' categories."""
        if sizeless := [x for x in self.images if not {'height', 'width'} <= x.keys()]:
            self.refuse(f'{len(sizeless)} images without height or width, the first {sizeless[0]}')
        for annotation in self.annotations:
            category = annotation.get('category_id')
            if category is not None and category not in self.categories:
                self.refuse(
                    f'annotation {annotation.get("id")} of category_id {category!r}, but only the '
                    f'categories {sorted(self.categories)}'
                )

    def check_classes(self, classes: list[str]) -> None:
        """Refuse class names if none is a category of the file; warn of differences."""
        found = list(self.categories.values())
        missing = [name for name in classes if name not in found]
        where = f'{self.key}.metainfo.classes'
        if missing and len(missing) == len(classes):
            raise ConfigError(
                f'{where}: none of {_shortened(missing)} is a category in {self.path}, which has: '
                f'{_shortened(found)}'
            )
        if missing:
            warn(
                f'{where}: {_shortened(missing)} not among the categories of {self.path} '
                f'({_shortened(found)}), and cannot be learnt or evaluated'
                f'{did_you_mean(missing[0], found)}'
            )
        counts = Counter(self.categories.get(x.get('category_id')) for x in self.annotations)
        left_out = [name for name in found if classes and name not in classes and counts[name]]
        if left_out:
            warn(
                f'{where} leaves out {_shortened(left_out)} of {self.path}; the objects of these '
                f'({sum(counts[name] for name in left_out)}) count as background.'
            )

    def check_order(self, classes: list[str]) -> None:
        """Check that class names and labels agree.

        CocoDataset numbers the categories it uses in the file's order, regardless of the order of the
        class names, and skips no number for a missing one.
        """
        labelled = [name for name in self.categories.values() if name in classes]
        if labelled != classes[: len(labelled)]:
            raise ConfigError(
                f'{self.key}.metainfo.classes is {_shortened(classes)}, but labels 0 to '
                f'{len(labelled) - 1} will be {_shortened(labelled)}, in the order of the categories '
                f'in {self.path}, so names would be swapped. Write the classes in that order, and the '
                'categories of all annotation files alike'
            )

    def check_entries(self, needs_labels: bool) -> None:
        """Check what CocoDataset reads of images and annotations."""
        for name, entries in (('images', self.images), ('annotations', self.annotations)):
            if not entries and (needs_labels or name == 'images'):
                self.refuse(f'no {name}')
            if (count := len({x.get('id') for x in entries})) < len(entries):
                self.refuse(
                    f'{len(entries)} {name} with {count} ids; give each its own id'
                    + (', and its annotations that image_id' if name == 'images' else '')
                )
        sizes = {image['id']: (image['width'], image['height']) for image in self.images}
        outside = [x for x in self.annotations if self._leaves_image(x, sizes)]
        named = {x['image_id'] for x in self.annotations}
        if named and not named & sizes.keys():
            self.refuse(
                f'no image that an image_id of an annotation names: {min(named, key=str)!r} and '
                f'others, but images have ids like {next(iter(sizes))!r}'
            )
        if len(outside) > MANY * len(self.annotations):
            warn(
                f'{len(outside)} of {len(self.annotations)} boxes in {self.path} leave their image, '
                f"the first is {outside[0]['bbox']} of annotation {outside[0]['id']}. COCO's boxes "
                'are [x, y, width, height]; if these are [x1, y1, x2, y2], convert them.'
            )

    def _leaves_image(self, annotation: dict, sizes: dict) -> bool:
        if missing := [key for key in READ if key not in annotation]:
            self.refuse(
                f'an annotation without {" and ".join(missing)}: {annotation}; mmdet reads '
                f'{", ".join(READ)}'
            )
        box = annotation['bbox']
        is_list = isinstance(box, list) and len(box) == 4
        if not is_list or not all(is_number(x, least=-math.inf) for x in box):
            self.refuse(
                f'annotation {annotation["id"]} with bbox {box}; accepted: four numbers, '
                '[x, y, width, height]'
            )
        width, height = sizes.get(annotation['image_id'], (math.inf, math.inf))
        return box[0] + box[2] > width + TOLERANCE or box[1] + box[3] > height + TOLERANCE


def _shortened(names: list[str]) -> str:
    shown = ', '.join(names[:10])
    return f'{shown} … ({len(names)} names)' if len(names) > 10 else shown
