"""Checks the data sets and evaluators that a config names, before training."""

import math
import os.path as osp
from collections import Counter
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmengine.config import Config, ConfigDict
from mmengine.fileio import list_from_file

from ..config_tree import class_of
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
        files[stage], classes = [], []
        for key, dataset in leaf_configs(cfg, f'{stage}_dataloader.dataset'):
            if _is_local(dataset):
                files[stage] += _check_dataset(dataset, key)
                classes = classes or _read_classes(dataset, key)
        for key, evaluator in evaluator_configs(cfg, f'{stage}_evaluator'):
            if _is_local(evaluator):
                _check_exists(f'{key}.ann_file', evaluator.get('ann_file'))
                _check_evaluator(evaluator, files[stage], classes, key)
    for path in set(files.get('train', ())) & set(files.get('val', ())):
        warn(f'{path} is both trained on and validated on, so AP says nothing of other images.')


def _is_local(config: ConfigDict) -> bool:
    return (config.get('backend_args') or {}).get('backend', 'local') == 'local'


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
    cls = class_of(dataset, DATASETS)
    if isinstance(cls, type) and issubclass(cls, CocoDataset) and osp.isfile(path):
        labels = CocoFile(path, key)
        classes = _read_classes(dataset, key) or list(cls.METAINFO.get('classes') or ())
        labels.check_categories()
        labels.check_classes(classes)
        if cls is CocoDataset:  # subclasses have their own order and annotations
            labels.check_order(classes)
            labels.check_entries((not dataset.get('test_mode') and dataset.get('filter_cfg')) or {})
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


def _check_evaluator(evaluator: ConfigDict, files: list[str], classes: list[str], key: str) -> None:
    """Refuse a file that COCO's metric cannot use, or that has other images than the data set."""
    path, metrics = evaluator.get('ann_file'), coco_metrics(evaluator)
    if not (metrics and path and osp.isfile(path)):
        return
    labels = CocoFile(path, key)
    if not (labels.annotations or evaluator.get('format_only')):
        labels.refuse("no annotations, which COCO's metric needs")
    if lacking := [x for x in labels.annotations if x.get('iscrowd') not in (0, 1)]:
        labels.refuse(
            f"{len(lacking)} annotations without iscrowd, which COCO's metric needs (0, or 1 for a "
            f'crowd), the first {lacking[0]}'
        )
    labels.check_matching(classes, bool(evaluator.get('classwise')))
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
        for category in content['categories']:
            if not (isinstance(category['id'], int) and isinstance(category['name'], str)):
                self.refuse(
                    f'a category {category}; accepted: a whole number as id, a text as name'
                )
        self.categories = {x['id']: x['name'] for x in content['categories']}

    def refuse(self, found: str) -> None:
        """Raise an error that says what the file has."""
        raise ConfigError(f'{self.key}.ann_file: {self.path} has {found}')

    def check_categories(self) -> None:
        """Check the images' sizes and the annotations' categories."""
        sizeless = [
            image
            for image in self.images
            if not all(is_number(image.get(x), least=1) for x in ('height', 'width'))
        ]
        if sizeless:
            self.refuse(
                f'{len(sizeless)} images without height or width in pixels, the first {sizeless[0]}'
            )
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

    def check_matching(self, classes: list[str], classwise: bool) -> None:
        """Check what pycocotools and CocoMetric match predictions with."""
        found = list(self.categories.values())
        if missing := [name for name in classes if name not in found]:
            self.refuse(
                f'no category {_shortened(missing)}, so predictions of such objects would end the '
                'evaluation; add it to the categories, or take it out of the classes'
            )
        if classwise and list(self.categories) != sorted(self.categories):
            self.refuse(
                f'categories with ids in the order {_shortened([*map(str, self.categories)])}, so '
                "that COCO's metric would give AP by class the names of other classes; sort them by id "
                'in all annotation files'
            )
        ids = [x.get('id') for x in self.annotations]
        if others := [x for x in ids if not isinstance(x, int)]:
            self.refuse(
                f"{len(others)} annotations without a whole number as id, which COCO's metric needs; "
                f'the first has {others[0]!r}'
            )
        if 0 in ids:
            warn(
                f'{self.path} has an annotation with id 0, which pycocotools never counts as found; '
                'number annotations from 1.'
            )

    def check_entries(self, filter_cfg: dict) -> None:
        """Check what CocoDataset reads of images and annotations, and warn of what it leaves out."""
        for name, entries in (('images', self.images), ('annotations', self.annotations)):
            if not entries and (filter_cfg.get('filter_empty_gt') or name == 'images'):
                self.refuse(f'no {name}')
            if (count := len({x.get('id') for x in entries})) < len(entries):
                self.refuse(
                    f'{len(entries)} {name} with {count} ids; give each its own id'
                    + (', and its annotations that image_id' if name == 'images' else '')
                )
        if nameless := [x for x in self.images if not isinstance(x.get('file_name'), str)]:
            self.refuse(f'{len(nameless)} images without file_name, the first {nameless[0]}')
        sizes = {image['id']: (image['width'], image['height']) for image in self.images}
        self._check_sizes(list(sizes.values()), filter_cfg.get('min_size', 0))
        for annotation in self.annotations:
            self._check_box(annotation)
        outside = [x for x in self.annotations if _leaves_image(x, sizes)]
        left_out = [x for x in self.annotations if _is_left_out(x, sizes)]
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
        if len(left_out) > MANY * len(self.annotations):
            first = {key: left_out[0][key] for key in ('id', 'bbox', 'area')}
            warn(
                f'{len(left_out)} of {len(self.annotations)} objects in {self.path} are left out, as '
                'their box is outside the image or less than a pixel wide or high, or their area is 0; '
                f'the first is {first}.'
            )

    def _check_sizes(self, sizes: list[tuple[float, float]], min_size: float) -> None:
        small = [size for size in sizes if min(size) < min_size]
        if len(small) > MANY * len(sizes):
            found = (
                f'{len(small)} of {len(sizes)} images less than {min_size} pixels wide or high, which '
                f'{self.key}.filter_cfg.min_size={min_size} leaves out'
            )
            if len(small) == len(sizes):
                self.refuse(found)
            warn(f'{self.path} has {found}; {self.key}.filter_cfg.min_size=0 keeps them.')

    def _check_box(self, annotation: dict) -> None:
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
        if not is_number(annotation['area'], least=-math.inf):
            self.refuse(f'annotation {annotation["id"]} with area {annotation["area"]!r}')


def _leaves_image(annotation: dict, sizes: dict) -> bool:
    (x, y, w, h), (width, height) = _box_and_image(annotation, sizes)
    return min(x, y) < -TOLERANCE or x + w > width + TOLERANCE or y + h > height + TOLERANCE


def _is_left_out(annotation: dict, sizes: dict) -> bool:
    """Tell whether CocoDataset leaves out an object, and says nothing."""
    (x, y, w, h), (width, height) = _box_and_image(annotation, sizes)
    is_inside = min(x + w, width) > max(x, 0) and min(y + h, height) > max(y, 0)
    return not is_inside or min(w, h) < 1 or annotation['area'] <= 0


def _box_and_image(annotation: dict, sizes: dict) -> tuple[list[float], tuple[float, float]]:
    return annotation['bbox'], sizes.get(annotation['image_id'], (math.inf, math.inf))


def _shortened(names: list[str]) -> str:
    shown = ', '.join(names[:10])
    return f'{shown} … ({len(names)} names)' if len(names) > 10 else shown
