import copy

import torch
from mmdet.registry import HOOKS
from mmdet.structures import SampleList
from mmengine.evaluator import DumpResults, Evaluator
from mmengine.hooks import Hook, RuntimeInfoHook
from mmengine.runner import BaseLoop, Runner, autocast
from torch.utils.data import DataLoader

from ..datasets import leaf_datasets, loads_labels_after_resizing, rescale_labels
from ..errors import ConfigError
from ..models import Distiller, Teacher
from ..models.replay import fresh_samples
from ..runs import preserved_random_state
from .model_parts import find_distiller, find_part


@HOOKS.register_module()
class EvalTeacherHook(Hook):
    """Evaluates the teacher as well, after each validation and test.

    The loader runs again, the student's head predicts on the teacher's features, and the same metrics
    are logged with the prefix ``teacher/``, such as ``teacher/coco/bbox_mAP``. The teacher sees the
    labels, so its AP is not a detector's accuracy; it shows whether the teacher is ahead of the
    student, which distillation needs.

    The student's metrics do not change, nor do the best checkpoint, schedulers that follow a metric,
    random numbers or weights. With an EMA the averaged weights are evaluated. Validation takes about
    twice as long. Where a recipe's teacher has stopped (``gentle``: at half time, or earlier), its last
    state is evaluated on.

    The pipeline must load annotations. If it loads them after resizing, like stock test pipelines,
    boxes and masks are in pixels of the original image; ``scale_factor`` converts them to input
    pixels, the inverse of the heads' rescaling.

    Args:
        teacher: Name of a trained teacher, also the metrics' prefix. Defaults to ``'teacher'``, that
            of ``SSSDDistiller``.

    Raises:
        ConfigError: before training, validation or test, if there is no validation, the pipeline loads
            no annotations (or no masks although the teacher uses them), or the model has no such
            trained teacher.
    """

    priority = 'HIGH'  # before EMAHook swaps its weights back and LoggerHook writes

    def __init__(self, teacher: str = 'teacher') -> None:
        self.teacher = teacher
        self.labels_in_original_pixels: dict[str, bool] = {}  # by stage

    def before_train(self, runner: Runner) -> None:
        """Check the validation data before training."""
        if runner.val_loop is None:
            raise ConfigError(
                f'{type(self).__name__} evaluates after validation, but the config has no '
                'val_dataloader; give val_dataloader, val_cfg and val_evaluator, or remove the hook'
            )
        self._look_at_labels(runner, 'val', runner.val_loop.dataloader)

    def before_val(self, runner: Runner) -> None:
        """Check the validation data, unless training has."""
        self._look_at_labels(runner, 'val', runner.val_loop.dataloader)

    def before_test(self, runner: Runner) -> None:
        """Check the test data."""
        self._look_at_labels(runner, 'test', runner.test_loop.dataloader)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Evaluate the teacher and record its metrics next to the student's."""
        teacher_metrics = self._evaluate(runner, 'val', runner.val_loop)
        RuntimeInfoHook().after_val_epoch(runner, teacher_metrics)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Evaluate the teacher and record its metrics next to the student's."""
        teacher_metrics = self._evaluate(runner, 'test', runner.test_loop)
        RuntimeInfoHook().after_test_epoch(runner, teacher_metrics)

    def _look_at_labels(self, runner: Runner, stage: str, loader: DataLoader) -> None:
        """Find out, once per stage, whether boxes and masks are in original pixels."""
        if stage in self.labels_in_original_pixels:
            return
        teacher = self._checked_teacher(runner)
        key = f'{stage}_dataloader.dataset.pipeline'
        use_masks = getattr(teacher, 'use_masks', False)
        with preserved_random_state():
            found = {
                loads_labels_after_resizing(
                    dataset.pipeline, dataset.get_data_info(0), key, use_masks
                )
                for dataset in leaf_datasets(loader.dataset)
                if len(dataset)
            }
        if len(found) > 1:
            raise ConfigError(
                f'{key}: some data sets load annotations before resizing, others after it; '
                'accepted: the same order in all'
            )
        self.labels_in_original_pixels[stage] = found == {True}

    def _checked_teacher(self, runner: Runner) -> Teacher:
        teacher = find_part(runner, self, 'teacher')
        if not teacher.is_trained:
            raise ConfigError(
                f"is {self.teacher!r}, which is not trained with the student's head; accepted: a "
                "teacher with a loss_weight above 0. mmdet's test evaluates a pretrained one",
                f'{type(self).__name__}.teacher',
            )
        return teacher

    @torch.no_grad()
    def _evaluate(self, runner: Runner, stage: str, loop: BaseLoop) -> dict[str, float]:
        """Run a loop's loader and a copy of its evaluator on the teacher's predictions."""
        distiller = find_distiller(runner, self)
        evaluator = _copy_for_teacher(loop.evaluator)
        runner.logger.info('Evaluating the teacher, which sees the labels.')
        with preserved_random_state():
            for data_batch in loop.dataloader:
                with autocast(enabled=loop.fp16):
                    outputs = self._predict(
                        distiller, data_batch, self.labels_in_original_pixels[stage]
                    )
                evaluator.process(data_samples=outputs, data_batch=data_batch)
            metrics = evaluator.evaluate(len(loop.dataloader.dataset))
        return {f'{self.teacher}/{name}': value for name, value in metrics.items()}

    def _predict(
        self, distiller: Distiller, data_batch: dict, labels_in_original_pixels: bool
    ) -> SampleList:
        """Predict with the teacher; data samples keep the ground truth that metrics expect."""
        data = distiller.data_preprocessor(data_batch, False)
        labelled = fresh_samples(data['data_samples'])
        if labels_in_original_pixels:
            for sample in labelled:
                rescale_labels(sample.gt_instances, sample.scale_factor)
        outputs = distiller.predict_with_teacher(self.teacher, data['inputs'], labelled)
        for output, sample in zip(outputs, data['data_samples'], strict=True):
            output.gt_instances = sample.gt_instances
        return outputs


def _copy_for_teacher(evaluator: Evaluator) -> Evaluator:
    """Copy an evaluator, with other file names than the student's."""
    evaluator = copy.copy(evaluator)
    metrics = [copy.copy(x) for x in evaluator.metrics if not isinstance(x, DumpResults)]
    for metric in metrics:
        metric.results = []
        if getattr(metric, 'outfile_prefix', None):
            metric.outfile_prefix += '.teacher'
    evaluator.metrics = metrics
    return evaluator
