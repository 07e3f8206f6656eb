"""Checks the files that a config names, before training."""

import logging
import os.path as osp
from collections.abc import Iterator

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmengine.config import Config, ConfigDict
from mmengine.fileio import list_from_file
from mmengine.logging import print_log

from ..config_tree import nested_configs
from ..errors import ConfigError
from .coco_file import read_coco
from .leaf_datasets import leaf_configs


def check_annotations(cfg: Config, stages: tuple[str, ...] = ('train', 'val')) -> None:
    """Check the data sets and evaluators of a config.

    Files on non-local storage are not checked.

    Args:
        cfg: The complete config.
        stages: Loaders and evaluators to check: ``'train'``, ``'val'``, ``'test'``.

    Raises:
        ConfigError: if a file or folder is missing, an annotation file is not a COCO file, none of the
            class names is one of its categories, class names and labels disagree, an image has no
            size, or an annotation's category is undefined. The message names the config key.
    """
    for stage in stages:
        for key, dataset in leaf_configs(cfg, f'{stage}_dataloader.dataset'):
            _check_dataset(dataset, key)
        for key, evaluator in evaluator_configs(cfg, f'{stage}_evaluator'):
            if not evaluator.get('backend_args'):
                _check_exists(f'{key}.ann_file', evaluator.get('ann_file'))


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
            classes = list_from_file(classes)
        classes = list(classes or dataset_class.METAINFO.get('classes') or ())
        found = _read_categories(path, key)
        _check_classes(classes, found, path, key)
        if dataset_class is CocoDataset:  # subclasses have their own order
            _check_order(classes, found, path, key)


def _check_exists(key: str, path: str | None) -> None:
    if path and '://' not in path and not osp.exists(path):
        raise ConfigError(
            f'{key}: there is no {path} (looked for from {osp.abspath(osp.curdir)}); set the '
            "data set's data_root, or this key, to the place of the data"
        )


def _read_categories(path: str, key: str) -> list[str]:
    """Read a COCO file's categories, and check its images' sizes and its annotations' categories."""
    content = read_coco(path, f'{key}.ann_file')
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
            f'{unknown["category_id"]}; its categories are {sorted(names)}'
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
        print_log(
            f'{key}.metainfo.classes: {_shortened(missing)} not among the categories of {path} '
            f'({_shortened(found)}); they cannot be learnt or evaluated',
            logger='current',
            level=logging.WARNING,
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
