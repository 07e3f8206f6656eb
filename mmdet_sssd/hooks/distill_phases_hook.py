import re
from collections.abc import Sequence

import numpy as np
from mmdet.registry import HOOKS
from mmengine.dist import broadcast_object_list
from mmengine.hooks import Hook, RuntimeInfoHook
from mmengine.hooks.hook import DATA_BATCH
from mmengine.logging import MessageHub
from mmengine.model import is_model_wrapper
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.nn import Parameter

from ..datasets.branches import UNLABELLED
from ..errors import ConfigError, check, is_number, warn, within
from .model_parts import find_distiller, find_part


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
class DistillPhasesHook(Hook):
    """Sets, by fractions of the run, what distillation with a teacher trains.

    =========================  ==============================================================
    until ``freeze_backbone``  the student's backbone is frozen; neck and heads train
    until ``detach_student``   the terms train only their adapters
    then                       the terms train the student, too
    from 1 - ``detach_last``   the terms train only their adapters again
    from ``teacher_until``     the teacher is off and frozen: stock training at stock cost
    =========================  ==============================================================

    With ``teacher_must_lead``, the teacher is off from the end of ``detach_student`` on, unless its
    detection loss is below the student's by then: a student that starts from trained weights can be
    ahead of a teacher that starts from random ones, and then has little to learn from it. Until this is
    known, the teacher's loss trains the teacher alone. So where it does not lead, the student is
    trained as in stock, to the bit (clipping by norm needs :class:`SeparateClippingHook`).

    Phases may overlap; detection losses train whatever is not frozen. Batch norms of a frozen
    backbone go on counting unless its ``norm_eval`` is set. A resumed run continues its phases.
    Sources: the first 1/6 detached and 1/9 frozen are LGD's (https://arxiv.org/abs/2109.11496) and
    its reference code's (30k and 20k of 180k iterations), as are the last 50k detached for
    X-101-DCN models and FCOS R-101-DCN. Detectors that start from random weights need no frozen
    backbone.

    Args:
        detach_student: Fraction of the run in which the terms detach the student at its start, in
            [0, 1]. Defaults to 0.
        detach_last: The same at its end. Defaults to 0.
        freeze_backbone: Fraction of the run in which the student's backbone is frozen at its start, in
            [0, 1]. Defaults to 0.
        teacher_until: Fraction of the run after which the teacher and its terms stop, in [0, 1].
            Defaults to 1.
        teacher_must_lead: Whether the teacher goes on after ``detach_student`` only if it leads: if the
            sum of its detection losses was lower than that of the student's, in the mean over the
            second half of that phase (on the first process, whose history checkpoints keep; steps
            whose losses are not finite do not count). Defaults to False.
        teacher: Name of the teacher. Defaults to ``'teacher'``, that of ``SSSDDistiller``.

    Raises:
        ConfigError: if a fraction is not in [0, 1], the model has no such teacher, the student has no
            ``backbone`` to freeze, or ``teacher_must_lead`` is set without ``detach_student``, for a
            teacher without detection losses, or in a run without a ``RuntimeInfoHook``.

    Example:
        >>> half = dict(type='DistillPhasesHook', detach_student=1 / 6, teacher_until=1 / 2)
    """

    FRACTIONS = ('detach_student', 'detach_last', 'freeze_backbone', 'teacher_until')

    def __init__(
        self,
        detach_student: float = 0.0,
        detach_last: float = 0.0,
        freeze_backbone: float = 0.0,
        teacher_until: float = 1.0,
        teacher_must_lead: bool = False,
        teacher: str = 'teacher',
    ) -> None:
        self.detach_student = detach_student
        self.detach_last = detach_last
        self.freeze_backbone = freeze_backbone
        self.teacher_until = teacher_until
        self.teacher_must_lead = teacher_must_lead
        self.teacher = teacher
        with within(type(self).__name__):
            for name in self.FRACTIONS:
                value = getattr(self, name)
                check(name, value, is_number(value, most=1), 'a fraction of the run, 0 to 1')
            accepted = teacher_must_lead in ([True, False] if detach_student else [False])
            expected = 'True or False' if detach_student else 'False without detach_student'
            check('teacher_must_lead', teacher_must_lead, accepted, expected)

    def before_train(self, runner: Runner) -> None:
        """Find the teacher, its terms and the backbone."""
        model = find_distiller(runner, self)
        self.owner = find_part(runner, self, 'teacher')
        self.terms = {name: x for name, x in model.terms.items() if x.teacher_name == self.teacher}
        if self.freeze_backbone and not hasattr(model.student, 'backbone'):
            raise ConfigError(
                f'is {self.freeze_backbone}, but a {type(model.student).__name__} has no backbone; '
                'accepted: 0',
                f'{type(self).__name__}.freeze_backbone',
            )
        if self.teacher_must_lead and not self.owner.is_trained:
            raise ConfigError(
                f'is True, but teacher {self.teacher!r} has no detection losses; accepted: False',
                f'{type(self).__name__}.teacher_must_lead',
            )
        if self.teacher_must_lead and not any(isinstance(x, RuntimeInfoHook) for x in runner.hooks):
            raise ConfigError(
                'is True, but default_hooks.runtime_info, which logs the losses to compare, is missing',
                f'{type(self).__name__}.teacher_must_lead',
            )
        if min(self.teacher_until, 1 - self.detach_last) <= self.detach_student:
            warn(
                f'{type(self).__name__} of {self.teacher}: its terms never train the student, since '
                f'detach_student is {self.detach_student:.3g}, detach_last {self.detach_last:.3g} and '
                f'teacher_until {self.teacher_until:.3g}, fractions of the run'
            )
        backbone = model.student.backbone.parameters() if self.freeze_backbone else ()
        self.backbone = [p for p in backbone if p.requires_grad]
        self.is_frozen = False

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DATA_BATCH = None
    ) -> None:
        """Enter the phase of this iteration."""
        progress = run_progress(runner, batch_idx)
        self._set_frozen(runner, progress < self.freeze_backbone)
        is_detached = progress < self.detach_student
        self._set_detached(runner, is_detached or progress >= 1 - self.detach_last)
        self.owner.trains_alone = is_detached and self.teacher_must_lead
        if self.owner.active and (progress >= self.teacher_until or self._lags(runner, progress)):
            self._stop_teacher(runner)

    def _set_frozen(self, runner: Runner, frozen: bool) -> None:
        if frozen != self.is_frozen:
            runner.logger.info(f'The backbone {"is frozen" if frozen else "trains from here on"}.')
            _set_trainable(runner, self.backbone, not frozen)
        self.is_frozen = frozen

    def _set_detached(self, runner: Runner, detached: bool) -> None:
        for name, term in self.terms.items():
            if detached != term.detach_student:
                runner.logger.info(
                    f'Term {name} trains only its adapter; the student has its detection loss.'
                    if detached
                    else f'Term {name} trains the student, too, from here on.'
                )
            term.detach_student = detached

    def _lags(self, runner: Runner, progress: float) -> bool:
        """Tell whether the teacher has to lead and does not: found out once, kept in checkpoints."""
        hub, key = runner.message_hub, f'{self.teacher}_leads'
        if not self.teacher_must_lead or progress < self.detach_student:
            hub.runtime_info.pop(key, None)  # of a shorter run, which is resumed to be longer
            return False
        if key not in hub.runtime_info:
            of_teacher, of_student = self._mean_losses(hub, runner.iter // 2)
            hub.update_info(key, of_teacher < of_student)
            runner.logger.info(
                f"Teacher {self.teacher}: its detection loss is {of_teacher:.4g}, the student's "
                f'{of_student:.4g}: {"it goes on" if of_teacher < of_student else "it stops"} '
                '(teacher_must_lead).'
            )
        return not hub.get_info(key)

    def _mean_losses(self, hub: MessageHub, window: int) -> tuple[float, float]:
        """Average the teacher's and the student's detection losses over the last iterations."""
        prefix = f'train/{self.teacher}.'
        names = [
            x.removeprefix(prefix) for x in hub.log_scalars if x.startswith(prefix) and 'loss' in x
        ]
        sums = [
            sum(
                np.ma.masked_invalid(hub.get_scalar(start + x).data[0][-window:]).mean()
                for x in names
            )
            for start in (prefix, 'train/')
        ]
        broadcast_object_list(sums)
        return float(sums[0]) / self.owner.loss_weight, float(sums[1])

    def _stop_teacher(self, runner: Runner) -> None:
        """Turn the teacher off, and freeze it and its terms."""
        runner.logger.info(f'Teacher {self.teacher}: done, the student trains on without it.')
        self.owner.active = False
        parts = [self.owner, *self.terms.values()]
        _set_trainable(runner, [p for part in parts for p in part.parameters()], False)
        # Their last mean would be logged until the end.
        names = '|'.join(map(re.escape, [self.teacher, *self.terms, UNLABELLED]))
        for key in list(runner.message_hub.log_scalars):
            if re.match(rf'train/(loss_)?({names})([._]|$)', key):
                del runner.message_hub.log_scalars[key]


def _set_trainable(runner: Runner, parameters: Sequence[Parameter], trainable: bool) -> None:
    """Freeze or thaw parameters: neither clipping, momentum nor weight decay sees frozen ones."""
    for parameter in parameters:
        parameter.grad = None
        parameter.requires_grad_(trainable)
    if is_model_wrapper(runner.model):  # DDP waits for what trained when it was made
        model, runner.model = runner.model.module, None  # the old wrapper's hooks go with it
        runner.model = runner.wrap_model(runner.cfg.get('model_wrapper_cfg'), model)
        runner._maybe_compile('train_step')
