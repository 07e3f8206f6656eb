"""Checks the files that a config names, before training."""

import logging
import math
import os.path as osp
from collections.abc import Iterator

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmengine.config import Config, ConfigDict
from mmengine.fileio import list_from_file
from mmengine.logging import print_log

from ..config_tree import nested_configs
from ..errors import ConfigError, did_you_mean, is_number
from .coco_file import read_coco
from .leaf_datasets import leaf_configs

READ = {'id', 'image_id', 'category_id', 'bbox', 'area'}  # of an annotation, by CocoDataset
TOLERANCE = 2  # pixels that a box may leave its image by
MANY = 0.01  # share of such boxes that is reported


def check_annotations(cfg: Config, stages: tuple[str, ...] = ('train', 'val')) -> None:
    """Check the data sets and evaluators of a config.

    Files on non-local storage are not checked.

    Args:
        cfg: The complete config.
        stages: Loaders and evaluators to check: ``'train'``, ``'val'``, ``'test'``.

    Raises:
        ConfigError: if a file or folder is missing, an annotation file is not a COCO file, none of the
            class names is one of its categories, class names and labels disagree, there are no images
            or, to train on, no annotations, an image has no size, an annotation lacks what mmdet reads
            or its category is undefined, or predictions would be compared with labels of other images.
            The message names the config key.
    """
    files: dict[str, list[str]] = {}  # annotation files by stage
    for stage in stages:
        files[stage] = []
        for key, dataset in leaf_configs(cfg, f'{stage}_dataloader.dataset'):
            _check_dataset(dataset, key)
            if dataset.get('ann_file') and not dataset.get('backend_args'):
                files[stage].append(osp.join(dataset.get('data_root') or '', dataset['ann_file']))
        for key, evaluator in evaluator_configs(cfg, f'{stage}_evaluator'):
            if not evaluator.get('backend_args'):
                _check_exists(f'{key}.ann_file', evaluator.get('ann_file'))
                _check_evaluated_labels(evaluator, files[stage], key)
    for path in set(files.get('train', ())) & set(files.get('val', ())):
        _warn(
            f'{path} is both trained on and validated on, so that AP says nothing of other images.'
        )


def evaluator_configs(cfg: Config, key: str) -> Iterator[tuple[str, ConfigDict]]:
    """Yield the configs of one or several evaluators, with their keys."""
    return nested_configs(cfg.get(key), key, into=())


def _check_dataset(dataset: ConfigDict, key: str) -> None:
    if dataset.get('backend_args'):
        return
    root = dataset.get('data_root') or ''
    ann_file = dataset.get('ann_file') or ''
    path = osp.join(root, ann_file) if ann_file else ''
    _check_exists(f'{key}.ann_file', path)
    for name, prefix in (dataset.get('data_prefix') or {}).items():
        _check_exists(f'{key}.data_prefix.{name}', osp.join(root, prefix or ''))
    dataset_class = dataset.get('type', '')
    if isinstance(dataset_class, str):
        dataset_class = DATASETS.get(dataset_class)
    is_coco = isinstance(dataset_class, type) and issubclass(dataset_class, CocoDataset)
    if is_coco and osp.isfile(path):
        classes = (dataset.get('metainfo') or {}).get('classes')
        if isinstance(classes, str):  # a file, as in mmengine
            if not osp.isfile(classes):
                raise ConfigError(
                    f'{key}.metainfo.classes is {classes!r}, and there is no file of that name; '
                    'accepted: a tuple of names, with a comma behind a single one, or a file of them'
                )
            classes = list_from_file(classes)
        classes = list(classes or dataset_class.METAINFO.get('classes') or ())
        content = read_coco(path, f'{key}.ann_file')
        found = _read_categories(content, path, key)
        _check_classes(classes, found, path, key)
        if dataset_class is CocoDataset:  # subclasses have their own order and annotations
            _check_order(classes, found, path, key)
            is_filtered = (dataset.get('filter_cfg') or {}).get('filter_empty_gt')
            _check_entries(content, path, key, needs_labels=bool(is_filtered))


def _check_exists(key: str, path: str | None) -> None:
    if path and '://' not in path and not osp.exists(path):
        raise ConfigError(
            f'{key}: there is no {path} (looked for from {osp.abspath(osp.curdir)}); set the '
            "data set's data_root, or this key, to the place of the data"
        )


def _check_evaluated_labels(evaluator: ConfigDict, files: list[str], key: str) -> None:
    """Refuse a file that COCO's metric cannot read, or that has other images than the data set."""
    path = evaluator.get('ann_file')
    is_coco = evaluator.get('type') in ('CocoMetric', 'mmdet.CocoMetric')
    if not (is_coco and path and osp.isfile(path)):
        return
    content = read_coco(path, f'{key}.ann_file')
    if lacking := [x for x in content['annotations'] if 'iscrowd' not in x]:
        raise ConfigError(
            f'{key}.ann_file: {len(lacking)} annotations in {path} have no iscrowd, the first is '
            f"{lacking[0]}; COCO's metric needs 0, or 1 for a crowd"
        )
    if len(files) != 1 or not osp.isfile(files[0]) or osp.samefile(path, files[0]):
        return
    others = read_coco(files[0], f'{key}.ann_file')
    predicted, labelled = (
        {x['id']: x.get('file_name') for x in part['images']} for part in (others, content)
    )
    if not predicted.items() <= labelled.items():
        raise ConfigError(
            f'{key}.ann_file: {path} has other images than {files[0]}, which the detector predicts, so '
            'that predictions would be compared with labels of other images; give both the same file'
        )


def _check_entries(content: dict[str, list[dict]], path: str, key: str, needs_labels: bool) -> None:
    """Check what CocoDataset reads of images and annotations."""
    for part, is_needed in (('images', True), ('annotations', needs_labels)):
        if is_needed and not content[part]:
            raise ConfigError(f'{key}.ann_file: {path} has no {part}')
    _check_ids(content, path, key)
    sizes = {image['id']: (image['width'], image['height']) for image in content['images']}
    outside = []
    for annotation in content['annotations']:
        _check_annotation(annotation, path, key)
        x, y, width, height = annotation['bbox']
        most = sizes.get(annotation['image_id'], (math.inf, math.inf))
        if x + width > most[0] + TOLERANCE or y + height > most[1] + TOLERANCE:
            outside.append(annotation)
    named = {annotation['image_id'] for annotation in content['annotations']}
    if named and not named & sizes.keys():
        raise ConfigError(
            f'{key}.ann_file: no image_id of an annotation in {path} is the id of an image: '
            f'{min(named, key=str)!r} and others, but images have ids like {next(iter(sizes))!r}'
        )
    if len(outside) > MANY * len(content['annotations']):
        _warn(
            f'{len(outside)} of {len(content["annotations"])} boxes in {path} leave their image, the '
            f"first is {outside[0]['bbox']} of annotation {outside[0]['id']}. COCO's boxes are "
            '[x, y, width, height]; if these are [x1, y1, x2, y2], convert them.'
        )


def _check_ids(content: dict[str, list[dict]], path: str, key: str) -> None:
    for part, advice in (('images', ', and its annotations that image_id'), ('annotations', '')):
        count = len({x.get('id') for x in content[part]})
        if count < len(content[part]):
            raise ConfigError(
                f'{key}.ann_file: {len(content[part])} {part} in {path} share {count} ids; give each '
                f'its own id{advice}'
            )


def _check_annotation(annotation: dict, path: str, key: str) -> None:
    if missing := sorted(READ - annotation.keys()):
        raise ConfigError(
            f'{key}.ann_file: an annotation in {path} has no {" and no ".join(missing)}: '
            f'{annotation}; mmdet reads {", ".join(sorted(READ))}'
        )
    box = annotation['bbox']
    numbers = isinstance(box, list) and all(is_number(x, least=-math.inf) for x in box)
    if not numbers or len(box) != 4:
        raise ConfigError(
            f'{key}.ann_file: annotation {annotation["id"]} in {path} has bbox {box}; accepted: four '
            'numbers, [x, y, width, height]'
        )


def _read_categories(content: dict[str, list[dict]], path: str, key: str) -> list[str]:
    """Read a COCO file's categories, and check its images' sizes and its annotations' categories."""
    names = {category['id']: category['name'] for category in content['categories']}
    used = {x['category_id']: x for x in content['annotations'] if 'category_id' in x}
    sizeless = [x for x in content['images'] if not {'height', 'width'} <= x.keys()]
    if sizeless:
        raise ConfigError(
            f'{key}.ann_file: {len(sizeless)} images in {path} have no height or no width, the first '
            f'is {sizeless[0]}; mmdet needs both'
        )
    unknown = next((x for category, x in used.items() if category not in names), None)
    if unknown is not None:
        raise ConfigError(
            f'{key}.ann_file: annotation {unknown.get("id")} in {path} has category_id '
            f'{unknown["category_id"]!r}; its categories are {sorted(names)}'
        )
    return list(names.values())


def _check_classes(classes: list[str], found: list[str], path: str, key: str) -> None:
    """Refuse class names if none is a category of the file; warn of each that is not."""
    missing = [name for name in classes if name not in found]
    if missing and len(missing) == len(classes):
        raise ConfigError(
            f'{key}.metainfo.classes: none of {_shortened(missing)} is a category in {path}, which '
            f'has: {_shortened(found)}'
        )
    if missing:
        hint = did_you_mean(missing[0], found)
        _warn(
            f'{key}.metainfo.classes: {_shortened(missing)} not among the categories of {path} '
            f'({_shortened(found)}), and cannot be learnt or evaluated{hint}'
        )


def _check_order(classes: list[str], found: list[str], path: str, key: str) -> None:
    """Make sure that class names and labels agree.

    CocoDataset numbers the categories it uses in the file's order, regardless of the order of the
    class names, and skips no number for a missing one.
    """
    labelled = [name for name in found if name in classes]
    if labelled != classes[: len(labelled)]:
        raise ConfigError(
            f'{key}.metainfo.classes is {_shortened(classes)}, but labels 0 to {len(labelled) - 1} '
            f'will be {_shortened(labelled)}: they are numbered in the order of the categories in '
            f'{path}, so names would be swapped. Write the classes in that order, and the categories '
            'of all annotation files alike'
        )


def _shortened(names: list[str]) -> str:
    shown = ', '.join(names[:10])
    return f'{shown} … ({len(names)} names)' if len(names) > 10 else shown


def _warn(message: str) -> None:
    print_log(message, logger='current', level=logging.WARNING)
