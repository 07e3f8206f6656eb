"""Phases of training: parts of the run in which some parameters do not train."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.hooks.hook import DATA_BATCH
from mmengine.model import is_model_wrapper
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.nn import Parameter

from ..errors import ConfigError, check, is_number, within
from .model_parts import find_distiller, find_teacher, find_term

FRACTION = 'a fraction of the run, 0 to 1'


def run_progress(runner: Runner, batch_idx: int) -> float:
    """Compute the completed fraction of the run before an iteration, in [0, 1).

    An epoch loop's progress counts epochs, so that phases do not move when a run is resumed with
    another number of processes; an iteration loop's counts iterations.

    Args:
        runner: The runner, in training.
        batch_idx: Index of the iteration within its epoch.
    """
    loop = runner.train_loop
    if isinstance(loop, EpochBasedTrainLoop):
        per_epoch = len(loop.dataloader)
        return (loop.epoch * per_epoch + batch_idx) / (loop.max_epochs * per_epoch)
    return loop.iter / loop.max_iters


@HOOKS.register_module()
class DetachStudentHook(Hook):
    """Detaches the student's features in the distillation loss at the start and end of the run.

    At the start only the adapter learns from the teacher, until the teacher is good enough. Source:
    LGD (https://arxiv.org/abs/2109.11496) and its reference code, 30k of 180k iterations; optionally
    also the last 50k (the X-101-DCN models and FCOS R-101-DCN).

    Args:
        first: Fraction of the run from the start, in [0, 1]. Defaults to 1/6.
        last: Fraction of the run up to the end, in [0, 1]. Defaults to 0.
        term: Name of the term. Defaults to ``'distill'``, that of ``SSSDDistiller``.

    Raises:
        ConfigError: if a fraction is not in [0, 1] or the model has no such term.
    """

    def __init__(self, first: float = 1 / 6, last: float = 0.0, term: str = 'distill') -> None:
        with within(type(self).__name__):
            check('first', first, is_number(first, most=1), FRACTION)
            check('last', last, is_number(last, most=1), FRACTION)
        self.first = first
        self.last = last
        self.term = term

    def before_train(self, runner: Runner) -> None:
        """Find the term."""
        self.owner = find_term(runner, self)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DATA_BATCH = None
    ) -> None:
        """Set whether the term detaches the student."""
        progress = run_progress(runner, batch_idx)
        detach = progress < self.first or progress >= 1 - self.last
        if detach != self.owner.detach_student:
            runner.logger.info(
                f'Term {self.term}: the student is detached, only the adapter learns.'
                if detach
                else f'Term {self.term}: the student learns from the teacher from here on.'
            )
        self.owner.detach_student = detach


@HOOKS.register_module()
class FreezeBackboneHook(Hook):
    """Freezes the student's backbone in the first part of the run.

    Its gradients are dropped before clipping, so that neither momentum nor weight decay moves it;
    neck and heads train. Source: LGD (https://arxiv.org/abs/2109.11496) and its reference code, 20k
    of 180k iterations. Not for detectors that start from random weights.

    Args:
        first: Fraction of the run from the start, in [0, 1]. Defaults to 1/9.

    Raises:
        ConfigError: if the fraction is not in [0, 1] or the student has no ``backbone``.
    """

    def __init__(self, first: float = 1 / 9) -> None:
        check(f'{type(self).__name__}.first', first, is_number(first, most=1), FRACTION)
        self.first = first
        self.frozen = False

    def before_train(self, runner: Runner) -> None:
        """Make the optimizer's step drop the backbone's gradients while it is frozen."""
        student = find_distiller(runner, self).student
        if not hasattr(student, 'backbone'):
            raise ConfigError(
                f'FreezeBackboneHook needs a model.student with a backbone, but '
                f'{type(student).__name__} has none; remove the hook'
            )
        self.parameters = list(student.backbone.parameters())
        _without_gradients(runner, self.parameters, lambda: self.frozen)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DATA_BATCH = None
    ) -> None:
        """Set whether the backbone is frozen."""
        frozen = run_progress(runner, batch_idx) < self.first
        if frozen != self.frozen:
            runner.logger.info(f'The backbone {"is frozen" if frozen else "trains from here on"}.')
            _drop_gradients(self.parameters)  # those accumulated while it was frozen
        self.frozen = frozen

    def after_train(self, runner: Runner) -> None:
        """Give the optimizer its own step back."""
        vars(runner.optim_wrapper).pop('step', None)


@HOOKS.register_module()
class TeacherScheduleHook(Hook):
    """Runs a teacher and its terms in some iterations only.

    In the others a step computes the student's own losses, as in stock, and neither momentum nor
    weight decay moves the parameters of teacher and adapters. After ``until`` they are frozen, and
    DDP no longer synchronises them. A resumed run continues the schedule.

    Args:
        until: Fraction of the run after which the teacher stops, in [0, 1]. Defaults to 1.
        every: The teacher runs in every n-th iteration, >= 1. Defaults to 1.
        teacher: Name of the teacher. Defaults to ``'teacher'``, that of ``SSSDDistiller``.

    Raises:
        ConfigError: if an argument is out of range or the model has no such teacher.

    Example:
        >>> default_hooks = dict(teacher_schedule=dict(type='TeacherScheduleHook', until=1 / 3))
    """

    def __init__(self, until: float = 1.0, every: int = 1, teacher: str = 'teacher') -> None:
        with within(type(self).__name__):
            check('until', until, is_number(until, most=1), FRACTION)
            check('every', every, isinstance(every, int) and every >= 1, 'a whole number >= 1')
        self.until = until
        self.every = every
        self.teacher = teacher

    def before_train(self, runner: Runner) -> None:
        """Find the parameters of teacher and terms, and freeze them while the teacher is idle."""
        self.owner = find_teacher(runner, self)
        terms = find_distiller(runner, self).terms
        self.terms = [name for name, term in terms.items() if term.teacher == self.teacher]
        parts = [self.owner, *(terms[name] for name in self.terms)]
        self.parameters = [p for part in parts for p in part.parameters() if p.requires_grad]
        self.is_done = False
        self.has_gradients = False
        _without_gradients(runner, self.parameters, self._were_idle)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DATA_BATCH = None
    ) -> None:
        """Set whether the teacher is active."""
        is_done = run_progress(runner, batch_idx) >= self.until
        if is_done and not self.is_done:
            runner.logger.info(f'Teacher {self.teacher}: done, the student trains on without it.')
            self._freeze(runner)
            self._clear_log(runner)
        self.is_done = is_done
        self.owner.active = not is_done and runner.iter % self.every == 0
        self.has_gradients |= self.owner.active

    def after_train(self, runner: Runner) -> None:
        """Give the optimizer its own step back."""
        vars(runner.optim_wrapper).pop('step', None)

    def _were_idle(self) -> bool:
        """Tell, when the optimizer steps, whether the teacher was idle since its last step."""
        had_gradients, self.has_gradients = self.has_gradients, False
        return not had_gradients

    def _freeze(self, runner: Runner) -> None:
        """Stop training the parameters, and stop DDP from waiting for their gradients."""
        _drop_gradients(self.parameters)
        for parameter in self.parameters:
            parameter.requires_grad_(False)
        if is_model_wrapper(runner.model):
            model, runner.model = runner.model.module, None  # the old wrapper's hooks go with it
            runner.model = runner.wrap_model(runner.cfg.get('model_wrapper_cfg'), model)

    def _clear_log(self, runner: Runner) -> None:
        """Drop the teacher's and terms' values, whose last mean would be logged until the end."""
        names = '|'.join(map(re.escape, [self.teacher, *self.terms]))
        for key in list(runner.message_hub.log_scalars):
            if re.match(rf'train/(loss_)?({names})([._]|$)', key):
                del runner.message_hub.log_scalars[key]


def _without_gradients(
    runner: Runner, parameters: Sequence[Parameter], are_frozen: Callable[[], bool]
) -> None:
    """Let the optimizer skip parameters while they are frozen.

    mmengine calls no hook between the backward pass and the clipping in ``step``, so ``step`` is
    replaced.
    """
    step = runner.optim_wrapper.step

    def step_without(*args: Any, **kwargs: Any) -> None:
        if are_frozen():
            _drop_gradients(parameters)
        step(*args, **kwargs)

    runner.optim_wrapper.step = step_without


def _drop_gradients(parameters: Sequence[Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None
