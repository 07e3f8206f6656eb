"""The phases of training: parts of the run in which something is held still."""

from collections.abc import Callable
from typing import Any

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.hooks.hook import DATA_BATCH
from mmengine.runner import EpochBasedTrainLoop, Runner

from ..errors import ConfigError
from .distiller_of import distiller_of, term_of


def run_progress(runner: Runner, batch_idx: int) -> float:
    """Tell how much of the run is done before an iteration, in [0, 1).

    An epoch loop's progress counts in epochs, so that phases stay where they are when a run is
    resumed with another number of processes; an iteration loop's counts in iterations.

    Args:
        runner: The runner, in training.
        batch_idx: Index of the iteration within its epoch.
    """
    loop = runner.train_loop
    if isinstance(loop, EpochBasedTrainLoop):
        per_epoch = len(loop.dataloader)
        return (loop.epoch * per_epoch + batch_idx) / (loop.max_epochs * per_epoch)
    return loop.iter / loop.max_iters


def _check_fraction(key: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ConfigError(f'{key} is {value!r}; accepted: a fraction of the run, 0 to 1')


@HOOKS.register_module()
class DetachStudentHook(Hook):
    """Detaches the student's features in the distillation loss at the start and end of the run.

    At the start the adapter learns first and the teacher becomes worth learning from. Source: LGD
    (https://arxiv.org/abs/2109.11496) and its reference code, 30k of 180k iterations; optionally the
    last 50k too (the X-101-DCN models and FCOS R-101-DCN).

    Args:
        first: Fraction of the run, from the start. Defaults to 1/6.
        last: Fraction of the run, up to the end. Defaults to 0.
        term: Name of the one of ``model.terms`` in which that happens. None, the default, is the
            distillation of ``SSSDDistiller`` itself.

    Raises:
        ConfigError: if a fraction is not in [0, 1] or the model is no distiller with that term.
    """

    def __init__(self, first: float = 1 / 6, last: float = 0.0, term: str | None = None) -> None:
        _check_fraction('DetachStudentHook.first', first)
        _check_fraction('DetachStudentHook.last', last)
        self.first = first
        self.last = last
        self.term = term

    def before_train(self, runner: Runner) -> None:
        """Find what is to be detached."""
        self.owner = term_of(runner, type(self).__name__, self.term)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DATA_BATCH = None
    ) -> None:
        """Detach the student or not."""
        progress = run_progress(runner, batch_idx)
        detach = progress < self.first or progress >= 1 - self.last
        if detach != self.owner.detach_student:
            what = f'Distillation term {self.term}' if self.term else 'Distillation'
            runner.logger.info(
                f"{what}: the student's side is detached, only the adapter learns from it."
                if detach
                else f'{what}: the student learns from the teacher from here on.'
            )
        self.owner.detach_student = detach


@HOOKS.register_module()
class FreezeBackboneHook(Hook):
    """Keeps the student's backbone still in the first part of the run.

    Its gradients are dropped before they are clipped and applied, so that neither momentum nor weight
    decay moves it; neck and heads train. Source: LGD (https://arxiv.org/abs/2109.11496) and its
    reference code, 20k of 180k iterations.

    A detector that starts from random weights has no use for it.

    Args:
        first: Fraction of the run, from the start. Defaults to 1/9.

    Raises:
        ConfigError: if the fraction is not in [0, 1] or the student has no ``backbone``.
    """

    def __init__(self, first: float = 1 / 9) -> None:
        _check_fraction('FreezeBackboneHook.first', first)
        self.first = first
        self.frozen = False

    def before_train(self, runner: Runner) -> None:
        """Put the dropping of gradients in front of the optimizer's step."""
        student = distiller_of(runner, type(self).__name__).student
        if not hasattr(student, 'backbone'):
            raise ConfigError(
                f'FreezeBackboneHook needs a model.student with a backbone, {type(student).__name__} '
                'has none; remove the hook'
            )
        self.parameters = list(student.backbone.parameters())
        runner.optim_wrapper.step = self._without_backbone(runner.optim_wrapper.step)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DATA_BATCH = None
    ) -> None:
        """Freeze the backbone or not."""
        frozen = run_progress(runner, batch_idx) < self.first
        if frozen != self.frozen:
            runner.logger.info(
                f'The backbone {"is kept still" if frozen else "trains from here on"}.'
            )
        self.frozen = frozen

    def after_train(self, runner: Runner) -> None:
        """Give the optimizer its own step back."""
        del runner.optim_wrapper.step

    def _without_backbone(self, step: Callable[..., None]) -> Callable[..., None]:
        """Wrap ``step``: mmengine calls no hook between the backward pass and the clipping in it."""

        def step_without_backbone(*args: Any, **kwargs: Any) -> None:
            if self.frozen:
                for parameter in self.parameters:
                    parameter.grad = None
            step(*args, **kwargs)

        return step_without_backbone
