import logging
import math
from itertools import product

from mmdet.evaluation import CocoMetric
from mmdet.models import RPN, BaseDetector
from mmdet.registry import HOOKS
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner, TestLoop, ValLoop

from ..datasets import leaf_datasets
from ..errors import ConfigError
from .model_parts import find_distiller


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
        check_data_sets(runner, self.distiller.student, self.distiller.count_classes())

    def after_train(self, runner: Runner) -> None:
        """Report the number of boxes too small to train on."""
        if self.distiller.num_dropped_boxes:
            runner.logger.warning(
                f'{self.distiller.num_dropped_boxes} labelled boxes (counted each time this process '
                'loaded one) covered less than a pixel of their image and were left out.'
            )


def check_data_sets(runner: Runner, detector: BaseDetector, num_classes: int | None) -> None:
    """Check the data sets of a run against each other and the detector.

    Raises:
        ConfigError: if a label of the training data is outside the detector's classes, no training
            image has an object, the validation data name fewer classes than the detector predicts, or
            a label stands for another class there.
    """
    training = runner.train_dataloader.dataset
    check_labels(training, detector, num_classes)
    if runner.val_loop is not None:
        check_evaluated_classes(runner.val_loop, detector, num_classes)
        _check_names(training, runner.val_loop.dataloader.dataset)


def check_labels(dataset: object, detector: BaseDetector, num_classes: int | None) -> None:
    """Check all labels of a training data set.

    Args:
        dataset: The built data set; wrappers are unwrapped.
        detector: The detector to train.
        num_classes: Its number of classes, if known; an RPN accepts any label.

    Raises:
        ConfigError: if a label is outside the classes or no image has an object.
    """
    datasets = list(leaf_datasets(dataset))
    most = math.inf if num_classes is None or isinstance(detector, RPN) else num_classes
    named = {len(x.metainfo.get('classes') or ()) for x in datasets} - {0, num_classes}
    if named and most == num_classes:
        print_log(
            f'The data set names {min(named)} classes, the detector has {num_classes}: check '
            "num_classes of the detector's heads and metainfo.classes of the data set.",
            logger='current',
            level=logging.WARNING,
        )
    num_objects = sum(_count_objects(dataset, most) for dataset in datasets)
    if datasets and not num_objects:
        raise ConfigError(
            'train_dataloader.dataset has no labelled object in any of its '
            f'{sum(map(len, datasets))} images ({_names(datasets)}); check ann_file, '
            'metainfo.classes and filter_cfg'
        )


def check_evaluated_classes(
    loop: ValLoop | TestLoop, detector: BaseDetector, num_classes: int | None
) -> None:
    """Check that COCO's metrics have a category for each class that a detector predicts.

    Args:
        loop: What evaluates.
        detector: The detector.
        num_classes: Its number of classes, if known.

    Raises:
        ConfigError: if the data set names fewer classes.
    """
    if not num_classes or hasattr(detector, 'language_model'):  # counts words
        return
    if not any(isinstance(metric, CocoMetric) for metric in loop.evaluator.metrics):
        return
    for dataset in leaf_datasets(loop.dataloader.dataset):
        names = dataset.metainfo.get('classes') or ()
        if 0 < len(names) < num_classes:
            part = 'val' if isinstance(loop, ValLoop) else 'test'
            raise ConfigError(
                f'the detector predicts {num_classes} classes, but {_names([dataset])} is evaluated '
                f"with {len(names)}: {', '.join(names)}. Make the num_classes of the detector's heads "
                f'and {part}_dataloader.dataset.metainfo.classes agree'
            )


def _check_names(training: object, evaluation: object) -> None:
    """Check that a label stands for the same class in training and evaluation."""
    for ours, theirs in product(leaf_datasets(training), leaf_datasets(evaluation)):
        names = (x.metainfo.get('classes') or () for x in (ours, theirs))
        for label, (name, other) in enumerate(zip(*names, strict=False)):
            if name != other:
                raise ConfigError(
                    f'label {label} is {name} in {_names([ours])}, but {other} in {_names([theirs])}; '
                    'make train_dataloader.dataset.metainfo.classes and '
                    'val_dataloader.dataset.metainfo.classes agree, in the same order'
                )


def _count_objects(dataset: BaseDataset, num_classes: float) -> int:
    """Count a data set's objects and check their labels."""
    num_objects = 0
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        instances = info.get('instances', [])
        num_objects += len(instances)
        for label in (x['bbox_label'] for x in instances if 'bbox_label' in x):
            if not 0 <= label < num_classes:
                raise ConfigError(
                    f'{_names([dataset])}: {info.get("img_path")} has an object with label {label}, '
                    f'but the model has {num_classes} classes (labels 0 to {num_classes - 1}); '
                    f'the data set names {len(dataset.metainfo.get("classes") or ())} classes. Make '
                    "the num_classes of the student's heads and "
                    'train_dataloader.dataset.metainfo.classes agree'
                )
    return num_objects


def _names(datasets: list[BaseDataset]) -> str:
    return ', '.join(str(dataset.ann_file or type(dataset).__name__) for dataset in datasets)
