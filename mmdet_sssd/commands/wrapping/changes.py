"""Lists what to change in a stock config for another data set or for masks, key by key.

mmengine resolves values when it reads a config, so a new ``data_root`` or ``num_classes`` at its top
would not reach the places that used the old one.
"""

import os.path as osp
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmdet.datasets import CocoDataset
from mmengine.config import ConfigDict

from ...config_tree import nested_configs, value_at
from ...datasets import evaluator_configs, leaf_configs, read_coco_summary
from ...errors import ConfigError
from ...recipes import RECIPES, backbone, structural_kd

Changes = dict[str, Any]  # new values by key, dotted as in --cfg-options

OTHER_CLASSES = ('rpn_head', 'semantic_head')  # their num_classes are not the objects' classes


@dataclass(frozen=True)
class WrappingOptions:
    """Settings of a wrapped config; None keeps the stock config's value.

    Args:
        recipe: Name of a recipe with an implicit teacher; see :mod:`mmdet_sssd.recipes`. None: gentle,
            but none beside another teacher.
        teacher: Config and checkpoint of a trained detector.
        method: Name of the recipe that learns from ``teacher``. None: structural_kd, but none with
            ``unlabelled``.
        backbone_teacher: Name of a model of timm, or ``NAME=FILE`` with a file of its weights.
        unlabelled: Annotation file of the images that ``teacher`` labels.
        unlabelled_img: Their folder; None: that of the labelled images.
        masks: Whether the teacher uses instance masks; the training pipelines then load them.
        explicit: Whether to write all of the recipe's settings out.
        data_root: Folder of a COCO-format data set.
        train_ann: Training annotation file in ``data_root``.
        val_ann: Annotation file in ``data_root`` for validation and test.
        train_img: Training image folder in ``data_root``.
        val_img: Image folder in ``data_root`` for validation and test.
        classes: Class names; None reads them from the training annotations if ``data_root`` or
            ``train_ann`` is given, and keeps the stock config's otherwise.
    """

    recipe: str | None = None
    teacher: tuple[str, str] | None = None
    method: str | None = None
    backbone_teacher: str | None = None
    unlabelled: str | None = None
    unlabelled_img: str | None = None
    masks: bool = False
    explicit: bool = False
    data_root: str | None = None
    train_ann: str | None = None
    val_ann: str | None = None
    train_img: str | None = None
    val_img: str | None = None
    classes: Sequence[str] | None = None

    def __post_init__(self) -> None:
        needs_teacher = [x for x in ('method', 'unlabelled') if getattr(self, x)]
        if needs_teacher and not self.teacher:
            raise ConfigError(f'--{needs_teacher[0]} needs --teacher, a detector to learn from')
        if self.unlabelled_img and not self.unlabelled:
            raise ConfigError('--unlabelled-img needs --unlabelled, a COCO file with these images')
        for name in ('recipe', 'backbone_teacher'):
            if self.unlabelled and getattr(self, name):
                raise ConfigError(
                    f'--{name.replace("_", "-")} is {getattr(self, name)}; with --unlabelled there is '
                    'one teacher, which labels images. Accepted beside it: --method'
                )
        if self.masks and self.recipes[0] not in RECIPES:
            raise ConfigError('--masks is for the teachers of --recipe; give one, or drop --masks')

    @property
    def recipes(self) -> tuple[str, ...]:
        """Names of the recipes; the first says what the distiller is."""
        method = self.method or ('structural_kd' if self.teacher and not self.unlabelled else None)
        semi = 'semi' if self.unlabelled else None
        names = (self.recipe, semi, method, 'backbone' if self.backbone_teacher else None)
        return tuple(x for x in names if x) or ('gentle',)

    @property
    def teachers(self) -> dict[str, dict]:
        """Configs of the teachers from outside, by name."""
        teachers = {}
        if self.teacher:
            config, checkpoint = self.teacher
            found = dict(type='PretrainedTeacher', config=config, checkpoint=checkpoint)
            teachers[structural_kd.TEACHER] = found
        if self.backbone_teacher:
            name, _, file = self.backbone_teacher.partition('=')
            if osp.isfile(name):
                raise ConfigError(f'--backbone-teacher is a file; accepted: MODEL={name}')
            weights = dict(checkpoint=file) if file else {}
            found = dict(type='BackboneTeacher', backbone=name, **weights)
            teachers[backbone.TEACHER] = found
        return teachers


def stock_changes(stock: ConfigDict, options: WrappingOptions) -> Changes:
    """List the options' changes to the stock config, without those that change nothing.

    Args:
        stock: The whole stock config.
        options: The options.

    Raises:
        ConfigError: if the options do not apply to the stock config's data sets or heads, or the
            classes cannot be read from the annotation file. The message names the key.
    """
    changes: Changes = {}
    for stage in ('train', 'val', 'test'):
        changes.update(_data_changes(stock, stage, options))
    classes = _classes(stock, changes, options)
    if classes is not None:
        changes.update(_class_changes(stock, classes))
    if options.masks:
        changes.update(_mask_changes(stock))
    changes = {key: value for key, value in changes.items() if value_at(stock, key) != value}
    places = list(dict.fromkeys(_place(key) for key in changes))
    return {key: changes[key] for key in sorted(changes, key=lambda key: places.index(_place(key)))}


def _place(key: str) -> str:
    return key.rpartition('.')[0]


def _datasets(stock: ConfigDict, stage: str) -> list[tuple[str, ConfigDict]]:
    return list(leaf_configs(stock, f'{stage}_dataloader.dataset'))


def _data_changes(stock: ConfigDict, stage: str, options: WrappingOptions) -> Changes:
    """List the new paths of a stage's data sets and evaluators."""
    ann_file = options.train_ann if stage == 'train' else options.val_ann
    images = options.train_img if stage == 'train' else options.val_img
    datasets = _datasets(stock, stage)
    if not (options.data_root or ann_file or images) or not datasets:
        return {}
    if len(datasets) > 1 and (ann_file or images):
        raise ConfigError(
            f'{stage}_dataloader has {len(datasets)} data sets '
            f'({", ".join(str(x.get("ann_file")) for _, x in datasets)}), so one annotation file or '
            'image folder is ambiguous; start from a config with one data set'
        )
    changes: Changes = {}
    for key, dataset in datasets:
        _check_is_coco(key, dataset)
        if options.data_root:
            changes[f'{key}.data_root'] = options.data_root
        if ann_file:
            changes[f'{key}.ann_file'] = ann_file
        if images:
            changes[f'{key}.data_prefix'] = {**(dataset.get('data_prefix') or {}), 'img': images}
    key, dataset = datasets[0]
    for evaluator_key, evaluator in evaluator_configs(stock, f'{stage}_evaluator'):
        if evaluator.get('ann_file'):
            changes[f'{evaluator_key}.ann_file'] = _annotation_path(key, dataset, changes)
    return changes


def _annotation_path(key: str, dataset: ConfigDict, changes: Changes) -> str:
    root, ann_file = (
        changes.get(f'{key}.{name}', dataset.get(name)) or '' for name in ('data_root', 'ann_file')
    )
    return osp.join(root, ann_file)


def _classes(
    stock: ConfigDict, changes: Changes, options: WrappingOptions
) -> tuple[str, ...] | None:
    """Take the class names from the options or the training annotations."""
    if options.classes is not None:
        return tuple(options.classes)
    datasets = _datasets(stock, 'train')
    if not (options.data_root or options.train_ann) or not datasets:
        return None
    path = _annotation_path(*datasets[0], changes)
    classes, _ = read_coco_summary(
        *osp.split(path), '--data-root and --train-ann (not read with --classes)'
    )
    return classes


def unlabelled_settings(stock: ConfigDict, options: WrappingOptions) -> dict[str, Any]:
    """Say how :func:`~mmdet_sssd.datasets.with_unlabelled` adds the images without labels.

    The labelled images are repeated to be about as many.

    Args:
        stock: The whole config, with the options' changes.
        options: The options.

    Returns:
        The function's settings; empty without such images.

    Raises:
        ConfigError: if there are several data sets or a hook switches their pipelines, or an
            annotation file cannot be read.
    """
    if not options.unlabelled:
        return {}
    datasets = _datasets(stock, 'train')
    if len(datasets) != 1:
        raise ConfigError(
            f'train_dataloader has {len(datasets)} data sets; accepted with --unlabelled: one'
        )
    for key, hook in nested_configs(stock.get('custom_hooks'), 'custom_hooks'):
        if 'Switch' in str(hook.get('type')):
            raise ConfigError(
                f'{key}.type is {hook["type"]!r}, which switches the pipeline of a single data set; '
                'with --unlabelled there are two. Drop the hook in a stock config of your own'
            )
    ((key, dataset),) = datasets
    _check_is_coco(key, dataset)
    root = dataset.get('data_root') or ''
    _, num_labelled = read_coco_summary(root, dataset.ann_file, '--data-root and --train-ann')
    _, num_unlabelled = read_coco_summary(root, options.unlabelled, '--data-root and --unlabelled')
    settings = dict(ann_file=options.unlabelled, img=options.unlabelled_img)
    settings = {name: x for name, x in settings.items() if x}
    return {**settings, 'repeat': max(1, round(num_unlabelled / max(num_labelled, 1)))}


def _class_changes(stock: ConfigDict, classes: tuple[str, ...]) -> Changes:
    """List the data sets' class names and the heads' class counts."""
    changes: Changes = {}
    for stage in ('train', 'val', 'test'):
        for key, dataset in _datasets(stock, stage):
            _check_is_coco(key, dataset)
            found = (dataset.get('metainfo') or {}).get('classes', CocoDataset.METAINFO['classes'])
            if tuple(found) != classes:
                changes[f'{key}.metainfo'] = {'classes': classes}
    changes.update(dict.fromkeys(_class_count_keys(stock.model), len(classes)))
    return changes


def _class_count_keys(model: ConfigDict) -> list[str]:
    """Find every ``num_classes`` of a detector's heads, their stages and losses."""
    for key, part in nested_configs(model, 'model'):
        if 'num_things_classes' in part or 'language_model' in part:
            found = 'num_things_classes' if 'num_things_classes' in part else 'language_model'
            raise ConfigError(
                f'{key}.{found}: a {model.type} needs more than a number of classes, so neither '
                '--classes nor another data set can set them; set them in a stock config of your '
                'own and wrap that'
            )
    keys = [
        f'{key}.num_classes'
        for name, head in model.items()
        if name.endswith('head')
        for key, part in nested_configs(head, f'model.{name}')
        if 'num_classes' in part and not set(key.split('.')) & set(OTHER_CLASSES)
    ]
    if not keys:
        raise ConfigError(
            f'model ({model.type}) has no num_classes in any of its heads, so its classes cannot be '
            'set; set them in a stock config of your own and wrap that'
        )
    return keys


def _mask_changes(stock: ConfigDict) -> Changes:
    """Make the steps of the training pipelines that load annotations load masks."""
    changes = {
        f'{key}.with_mask': True
        for top in ('train_dataloader', 'custom_hooks')  # hooks can switch pipelines
        for key, step in nested_configs(stock.get(top), top)
        if step.get('type') == 'LoadAnnotations'
    }
    if not changes:
        raise ConfigError(
            'train_dataloader has no LoadAnnotations step to load the masks for --masks; add one to '
            'the pipeline'
        )
    return changes


def _check_is_coco(key: str, dataset: ConfigDict) -> None:
    if dataset.get('type') not in ('CocoDataset', CocoDataset):
        raise ConfigError(
            f'{key}.type is {dataset.get("type")!r}; the options for data and classes accept: '
            'CocoDataset. Start from a COCO config'
        )
