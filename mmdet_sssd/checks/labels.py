"""Checks the labels of built data sets against the detector and each other."""

import math
from itertools import product

from mmdet.datasets.transforms import LoadAnnotations
from mmdet.evaluation import CocoMetric
from mmdet.models import RPN
from mmdet.registry import HOOKS
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.runner import Runner, TestLoop, ValLoop

from ..datasets import leaf_datasets
from ..errors import ConfigError, warn
from ..hooks.model_parts import bare_model, find_detector, find_distiller
from ..models import Distiller, LogitTerm, SemiDistiller
from ..models.student import count_classes


@HOOKS.register_module()
class CheckDatasetHook(Hook):
    """Checks the labels of the training data against the student's classes before training.

    Otherwise a label outside the classes gives wrong results or, on a GPU, a device assertion during
    the first epoch, and a prediction that the validation data have no class for ends the run after it.

    Raises:
        ConfigError: before the first iteration, see :func:`check_data_sets`.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Check the labels of all training images (on the CPU, from annotations already loaded)."""
        self.distiller = find_distiller(runner, self)
        check_data_sets(runner)

    def after_train(self, runner: Runner) -> None:
        """Report the number of boxes too small to train on."""
        if self.distiller.num_dropped_boxes:
            runner.logger.warning(
                f'{self.distiller.num_dropped_boxes} labelled boxes (counted each time this process '
                'loaded one) were less than a pixel wide or high in their image and were left out.'
            )


def check_data_sets(runner: Runner) -> None:
    """Check the data sets of a run against each other and the detector.

    Raises:
        ConfigError: if a label of the training data is outside the detector's classes, a mask that the
            pipeline loads is missing, no training image has an object, the validation data name fewer
            classes than the detector predicts, or a label stands for another class there, or in a
            teacher that labels images or whose scores are compared.
    """
    model, training = bare_model(runner), runner.train_dataloader.dataset
    num_classes = count_classes(model)
    is_rpn = isinstance(find_detector(runner), RPN)  # which accepts any label
    _check_labels(list(leaf_datasets(training)), None if is_rpn else num_classes)
    labelled = next(leaf_datasets(training), None)
    if isinstance(model, Distiller) and labelled is not None:
        _check_teachers(model, labelled)
    if runner.val_loop is not None:
        check_evaluated_classes(runner, runner.val_loop, num_classes)
        _check_names(training, runner.val_loop.dataloader.dataset)


def check_evaluated_classes(
    runner: Runner, loop: ValLoop | TestLoop, num_classes: int | None
) -> None:
    """Check that COCO's metrics have a category for each class that a run's detector predicts.

    Args:
        runner: The run.
        loop: What evaluates.
        num_classes: The detector's number of classes, if known.

    Raises:
        ConfigError: if the data set names fewer classes.
    """
    counts_words = hasattr(find_detector(runner), 'language_model')
    is_coco = any(isinstance(metric, CocoMetric) for metric in loop.evaluator.metrics)
    if not num_classes or counts_words or not is_coco:
        return
    for dataset in leaf_datasets(loop.dataloader.dataset):
        names = dataset.metainfo.get('classes') or ()
        if 0 < len(names) < num_classes:
            part = 'val' if isinstance(loop, ValLoop) else 'test'
            raise ConfigError(
                f'the detector predicts {num_classes} classes, but {_name(dataset)} is evaluated with '
                f"{len(names)}: {', '.join(names)}. Make the num_classes of the detector's heads and "
                f'{part}_dataloader.dataset.metainfo.classes agree'
            )


def _check_labels(datasets: list[BaseDataset], num_classes: int | None) -> None:
    counts = {len(x.metainfo.get('classes') or ()) for x in datasets} - {0, num_classes}
    if counts and num_classes is not None:
        warn(
            f'The data set names {min(counts)} classes, the detector has {num_classes}: check '
            "num_classes of the detector's heads and metainfo.classes of the data set."
        )
    if datasets and not sum(_count_objects(dataset, num_classes) for dataset in datasets):
        raise ConfigError(
            'train_dataloader.dataset has no labelled object in any of its '
            f'{sum(map(len, datasets))} images ({", ".join(map(_name, datasets))}); check ann_file, '
            'metainfo.classes and filter_cfg'
        )


def _count_objects(dataset: BaseDataset, num_classes: int | None) -> int:
    """Count a data set's objects; check their labels, and their masks if the pipeline loads these."""
    steps = dataset.pipeline.transforms
    with_masks = any(isinstance(x, LoadAnnotations) and x.with_mask for x in steps)
    most = math.inf if num_classes is None else num_classes
    num_objects = 0
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        instances = info.get('instances', [])
        num_objects += len(instances)
        for instance in instances:
            if not 0 <= instance.get('bbox_label', 0) < most:
                raise ConfigError(
                    f'{_name(dataset)}: {info.get("img_path")} has an object with label '
                    f'{instance["bbox_label"]}, but the model has {most} classes (labels 0 to '
                    f'{most - 1}); the data set names {len(dataset.metainfo.get("classes") or ())} '
                    "classes. Make the num_classes of the student's heads and "
                    'train_dataloader.dataset.metainfo.classes agree'
                )
            if with_masks and 'mask' not in instance:
                raise ConfigError(
                    f'{_name(dataset)}: {info.get("img_path")} has an object without segmentation, '
                    f'at {instance.get("bbox")}, but LoadAnnotations of the training pipeline has '
                    'with_mask=True; give each object one'
                )
    return num_objects


def _check_teachers(model: Distiller, dataset: BaseDataset) -> None:
    """Check that a label is the same class for a pretrained teacher that labels or scores classes."""
    scored = {x.teacher_name for x in model.terms.values() if isinstance(x, LogitTerm)}
    ours = list(dataset.metainfo.get('classes') or ())
    for name, teacher in model.teachers.items():
        theirs = list(getattr(teacher, 'classes', None) or ours)
        if ours == theirs or not (name in scored or isinstance(model, SemiDistiller)):
            continue
        found = (
            f'train_dataloader has the classes {", ".join(ours)}, the checkpoint of '
            f'model.teachers.{name} {", ".join(theirs)}'
        )
        if sorted(ours) == sorted(theirs):
            raise ConfigError(f'{found}; give a teacher that was trained with the same order')
        warn(f'{found}: check that they mean the same.')


def _check_names(training: object, evaluation: object) -> None:
    """Check that a label stands for the same class in training and evaluation."""
    for ours, theirs in product(leaf_datasets(training), leaf_datasets(evaluation)):
        names = (x.metainfo.get('classes') or () for x in (ours, theirs))
        for label, (name, other) in enumerate(zip(*names, strict=False)):
            if name != other:
                raise ConfigError(
                    f'label {label} is {name} in {_name(ours)}, but {other} in {_name(theirs)}; make '
                    'train_dataloader.dataset.metainfo.classes and '
                    'val_dataloader.dataset.metainfo.classes agree, in the same order'
                )


def _name(dataset: BaseDataset) -> str:
    return str(dataset.ann_file or type(dataset).__name__)
