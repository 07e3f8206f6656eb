"""Points a stock config to a data set of the user's own."""

import os.path as osp
from collections.abc import Sequence
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmengine.config import ConfigDict

from ..config_tree import class_of, nested_configs
from ..errors import ConfigError
from .leaf_datasets import evaluator_configs, leaf_configs

OTHER_CLASSES = ('rpn_head', 'semantic_head')  # their num_classes are not the objects' classes


def use_data(
    config: ConfigDict,
    *,
    data_root: str | None = None,
    train_ann: str | None = None,
    val_ann: str | None = None,
    train_img: str | None = None,
    val_img: str | None = None,
    classes: Sequence[str] | None = None,
    masks: bool = False,
) -> None:
    """Set paths and classes of a COCO-format data set in every place of a stock config.

    mmengine resolves values when it reads a config, so a new ``data_root`` or ``num_classes`` at its
    top would not reach the places that used the old one.

    Args:
        config: The whole stock config, ``_base_`` in a config that inherits it; changed in place.
        data_root: Folder of the data set. None keeps the config's value, here and below.
        train_ann: Training annotation file in it.
        val_ann: Annotation file in it for validation and test.
        train_img: Training image folder in it.
        val_img: Image folder in it for validation and test.
        classes: Class names.
        masks: Whether the training pipelines are to load instance masks.

    Raises:
        ConfigError: if a data set is not in COCO format, there are several where one file is given, or
            the detector's classes cannot be set. The message names the key.
    """
    for stage, ann_file, images in (
        ('train', train_ann, train_img),
        ('val', val_ann, val_img),
        ('test', val_ann, val_img),
    ):
        if data_root or ann_file or images:
            _set_paths(config, stage, data_root, ann_file, images)
        for key, dataset in _datasets(config, stage) if classes else ():
            _check_is_coco(key, dataset)
            dataset.metainfo = metainfo_of(classes)
    if classes:
        _set_class_count(config.model, len(classes))
    if masks:
        _load_masks(config)


def metainfo_of(classes: Sequence[str]) -> dict[str, Any]:
    """Make a data set's ``metainfo``: its classes, drawn in COCO's 80 colours or, if more, any."""
    num_colors = len(CocoDataset.METAINFO['palette'])
    return dict(classes=tuple(classes), **({'palette': None} if len(classes) > num_colors else {}))


def annotation_path(dataset: ConfigDict) -> str:
    """Join the folder and the annotation file of a data set's config."""
    return osp.join(*(dataset.get(name) or '' for name in ('data_root', 'ann_file')))


def _datasets(config: ConfigDict, stage: str) -> list[tuple[str, ConfigDict]]:
    return list(leaf_configs(config, f'{stage}_dataloader.dataset'))


def _set_paths(
    config: ConfigDict, stage: str, data_root: str | None, ann_file: str | None, images: str | None
) -> None:
    """Set the paths of a stage's data sets and evaluators."""
    datasets = _datasets(config, stage)
    if len(datasets) > 1 and (ann_file or images):
        raise ConfigError(
            f'{stage}_dataloader has {len(datasets)} data sets '
            f'({", ".join(str(x.get("ann_file")) for _, x in datasets)}), so one annotation file or '
            'image folder is ambiguous; start from a config with one data set'
        )
    for key, dataset in datasets:
        _check_is_coco(key, dataset)
        if data_root:
            dataset.data_root = data_root
        if ann_file:
            dataset.ann_file = ann_file
        if images:
            dataset.data_prefix = {**(dataset.get('data_prefix') or {}), 'img': images}
    for _, evaluator in evaluator_configs(config, f'{stage}_evaluator'):
        if datasets and evaluator.get('ann_file'):
            evaluator.ann_file = annotation_path(datasets[0][1])


def _set_class_count(model: ConfigDict, count: int) -> None:
    """Set every ``num_classes`` of a detector's heads, their stages and losses."""
    for key, part in nested_configs(model, 'model'):
        for name in ('num_things_classes', 'language_model'):
            if name in part:
                raise ConfigError(
                    f'{key}.{name}: a {model.type} needs more than a number of classes, so neither '
                    '--classes nor another data set can set them; set them in a stock config of your '
                    'own and wrap that'
                )
    counted = [
        part
        for name in model
        if name.endswith('head')
        for key, part in nested_configs(model[name], name)
        if 'num_classes' in part and not set(key.split('.')) & set(OTHER_CLASSES)
    ]
    if not counted:
        raise ConfigError(
            f'model ({model.type}) has no num_classes in any of its heads, so its classes cannot be '
            'set; set them in a stock config of your own and wrap that'
        )
    for part in counted:
        part.num_classes = count


def _load_masks(config: ConfigDict) -> None:
    """Make the steps of the training pipelines that load annotations load masks."""
    steps = [
        step
        for top in ('train_dataloader', 'custom_hooks')  # hooks can switch pipelines
        for _, step in nested_configs(config.get(top))
        if step.get('type') == 'LoadAnnotations'
    ]
    if not steps:
        raise ConfigError(
            'train_dataloader has no LoadAnnotations step to load the masks for --masks; add one to '
            'the pipeline'
        )
    for step in steps:
        step.with_mask = True


def _check_is_coco(key: str, dataset: ConfigDict) -> None:
    if class_of(dataset, DATASETS) is not CocoDataset:
        raise ConfigError(
            f'{key}.type is {dataset.get("type")!r}; the options for data and classes accept: '
            'CocoDataset. Start from a COCO config'
        )
