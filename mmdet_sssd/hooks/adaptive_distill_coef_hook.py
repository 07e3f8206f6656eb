import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.hooks.hook import DATA_BATCH
from mmengine.runner import Runner

from ..errors import ConfigError
from .runner_access import distiller_of, optim_wrappers_of


@dataclass
class _LRHistory:
    """What the coefficient depends on beside the present learning rate.

    Attributes:
        highest: Highest learning rate seen.
        reference: Learning rate after the last decay that counted.
        num_decays: How many decays counted.
    """

    highest: float = 0.0
    reference: float = 0.0
    num_decays: int = 0


@HOOKS.register_module()
class AdaptiveDistillCoefHook(Hook):
    r"""Lets the distillation coefficient λ follow the learning rate.

    The lower the learning rate, the higher λ, "to sustain the impact of distillation" (SSSD,
    https://arxiv.org/abs/2303.05015, which raises λ once, at the first decay). The hook reads the
    rate that the optimizer really uses, whatever schedulers made it, before every iteration. A
    rising rate is warm-up, and as long as it is at its highest λ is the model's own
    ``distill_coef``, λ₀. Then:

    - ``policy='step'``: λ = λ₀ · ``factor``\ :sup:`k` after the k-th decay. A decay counts when the
      rate has fallen to ``decay_ratio`` of what it was after the last one or below: each drop of a
      multi-step schedule, each halving of a smooth one.
    - ``policy='inverse_lr'``: λ = λ₀ · (highest lr / lr)\ :sup:`power`.
    - ``policy='constant'``: λ = λ₀.

    λ never exceeds λ₀ · ``max_scale``. It is logged as ``distill_coef``. A resumed run continues with
    the same λ; a rate that returns to its highest (warm restarts) begins anew.

    Of several parameter groups, the student's group with the highest rate counts.

    Args:
        policy: ``'step'``, ``'inverse_lr'`` or ``'constant'``. Defaults to ``'step'``.
        factor: What λ is multiplied by at each decay, > 0. Defaults to 2.
        max_decays: After how many decays λ stays; None for no limit. The paper's is 1. Defaults to
            None.
        decay_ratio: Fall of the rate that counts as a decay, in (0, 1). Defaults to 0.5.
        power: Exponent of ``'inverse_lr'``, > 0. Defaults to 1.
        max_scale: Highest λ / λ₀, >= 1. Defaults to 100.

    Raises:
        ConfigError: if an argument is not one of these or the model is no distiller.
    """

    POLICIES = ('step', 'inverse_lr', 'constant')
    STATE_KEY = 'adaptive_distill_coef'

    def __init__(
        self,
        policy: str = 'step',
        factor: float = 2.0,
        max_decays: int | None = None,
        decay_ratio: float = 0.5,
        power: float = 1.0,
        max_scale: float = 100.0,
    ) -> None:
        where = type(self).__name__
        if policy not in self.POLICIES:
            raise ConfigError(f'{where}.policy is {policy!r}; accepted: {", ".join(self.POLICIES)}')
        for name, value, accepted, good in (
            ('factor', factor, 'a number > 0', 0 < factor < math.inf),
            ('max_decays', max_decays, '0 or more, or None', max_decays is None or max_decays >= 0),
            ('decay_ratio', decay_ratio, 'a number between 0 and 1', 0 < decay_ratio < 1),
            ('power', power, 'a number > 0', 0 < power < math.inf),
            ('max_scale', max_scale, 'a number >= 1', 1 <= max_scale < math.inf),
        ):
            if not good:
                raise ConfigError(f'{where}.{name} is {value!r}; accepted: {accepted}')
        self.policy = policy
        self.factor = factor
        self.max_decays = math.inf if max_decays is None else max_decays
        self.decay_ratio = decay_ratio
        self.power = power
        self.max_scale = max_scale
        self.history = _LRHistory()

    def before_train(self, runner: Runner) -> None:
        """Find the model's λ₀ and the student's parameter groups."""
        self.distiller = distiller_of(runner, type(self).__name__)
        self.base_coef = self.distiller.distill_coef
        self.groups = list(self._student_groups(runner))

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DATA_BATCH = None
    ) -> None:
        """Set λ for this iteration and log it."""
        self.distiller.distill_coef = self.base_coef * self._scale()
        runner.message_hub.update_scalar('train/distill_coef', self.distiller.distill_coef)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Save what λ depends on."""
        checkpoint[self.STATE_KEY] = asdict(self.history)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Restore it when a run is resumed; weights alone do not bring it along."""
        if runner._resume and self.STATE_KEY in checkpoint:
            self.history = _LRHistory(**checkpoint[self.STATE_KEY])

    def _student_groups(self, runner: Runner) -> Iterator[dict]:
        students = {id(p) for p in self.distiller.student.parameters()}
        for wrapper in optim_wrappers_of(runner):
            for group in wrapper.optimizer.param_groups:
                if any(id(p) in students for p in group['params']):
                    yield group

    def _scale(self) -> float:
        """Note the present learning rate and work out λ / λ₀."""
        lr, history = max(float(group['lr']) for group in self.groups), self.history
        if lr >= history.highest:
            self.history = history = _LRHistory(highest=lr, reference=lr)
        elif lr <= self.decay_ratio * history.reference * (1 + 1e-6):
            history.reference = lr
            history.num_decays += 1
        if self.policy == 'step':
            return min(self.factor ** min(history.num_decays, self.max_decays), self.max_scale)
        if self.policy == 'inverse_lr':
            return (
                min((history.highest / lr) ** self.power, self.max_scale) if lr else self.max_scale
            )
        return 1.0
