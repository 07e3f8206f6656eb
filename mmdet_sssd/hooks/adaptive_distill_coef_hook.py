import math

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.hooks.hook import DATA_BATCH
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner

from ..errors import ConfigError, check, is_number, within
from .distiller_of import distiller_of, term_of


@HOOKS.register_module()
class AdaptiveDistillCoefHook(Hook):
    r"""Lets the distillation coefficient λ follow the learning rate.

    The lower the learning rate, the higher λ, "to sustain the impact of distillation" (SSSD,
    https://arxiv.org/abs/2303.05015, which raises λ once, at the first decay). The hook reads the
    rate that the optimizer really uses, whatever schedulers made it, before every iteration. As long
    as the rate is at its highest so far (during warm-up it is), λ is the model's own
    ``distill_coef``, λ₀. Then:

    - ``policy='step'``: λ = λ₀ · ``factor``\ :sup:`k` after the k-th decay. A decay counts when the
      rate has fallen to ``decay_ratio`` of what it was after the last one or below: each drop of a
      multi-step schedule, each halving of a smooth one. It is undone when the rate rises above that
      again (restarts).
    - ``policy='inverse_lr'``: λ = λ₀ · (highest lr / lr)\ :sup:`power`.
    - ``policy='constant'``: λ = λ₀.

    λ never exceeds λ₀ · ``max_scale``. It is logged as ``NAME_coef`` with the term's name, SSSD's as
    ``distill_coef``. A resumed run continues with the same λ. Of several parameter groups, the
    student's group with the highest rate counts. Each term of a model can have a hook of its own.

    Args:
        policy: ``'step'``, ``'inverse_lr'`` or ``'constant'``. Defaults to ``'step'``.
        factor: What λ is multiplied by at each decay, > 0. Defaults to 2.
        max_decays: After how many decays λ stays; None for no limit. The paper's is 1. Defaults to
            None.
        decay_ratio: Fall of the rate that counts as a decay, in (0, 1). Defaults to 0.5.
        power: Exponent of ``'inverse_lr'``, > 0. Defaults to 1.
        max_scale: Highest λ / λ₀, >= 1. Defaults to 10.
        term: Name of the term whose coefficient this is. Defaults to ``'distill'``, the one of
            ``SSSDDistiller`` itself.

    Raises:
        ConfigError: if an argument is not one of these or the model is no distiller with that term.
    """

    POLICIES = ('step', 'inverse_lr', 'constant')

    def __init__(
        self,
        policy: str = 'step',
        factor: float = 2.0,
        max_decays: int | None = None,
        decay_ratio: float = 0.5,
        power: float = 1.0,
        max_scale: float = 10.0,
        term: str = 'distill',
    ) -> None:
        with within(type(self).__name__):
            check('policy', policy, policy in self.POLICIES, ', '.join(self.POLICIES))
            check('factor', factor, is_number(factor) and factor > 0, 'a number > 0')
            check(
                'max_decays',
                max_decays,
                max_decays is None or max_decays >= 0,
                '0 or more, or None',
            )
            check('decay_ratio', decay_ratio, 0 < decay_ratio < 1, 'a number between 0 and 1')
            check('power', power, is_number(power) and power > 0, 'a number > 0')
            check('max_scale', max_scale, is_number(max_scale, least=1), 'a number >= 1')
        self.policy = policy
        self.factor = factor
        self.max_decays = math.inf if max_decays is None else max_decays
        self.decay_ratio = decay_ratio
        self.power = power
        self.max_scale = max_scale
        self.term = term
        self.state_key = f'adaptive_distill_coef.{term}'
        self.references: list[float] = []  # highest rate, then the rate after each decay

    def before_train(self, runner: Runner) -> None:
        """Find λ₀ and the student's parameter groups."""
        self.owner = term_of(runner, self)
        self.base_coef = self.owner.distill_coef
        student = {id(p) for p in distiller_of(runner, self).student.parameters()}
        if isinstance(runner.optim_wrapper, OptimWrapperDict):
            raise ConfigError(
                'makes several optimizers, and a detector is trained by one; accepted: one '
                'optim_wrapper, with paramwise_cfg for learning rates of their own',
                'optim_wrapper',
            )
        self.groups = [
            group
            for group in runner.optim_wrapper.param_groups
            if any(id(p) in student for p in group['params'])
        ]

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DATA_BATCH = None
    ) -> None:
        """Set λ for this iteration and log it."""
        self.owner.distill_coef = self.base_coef * self._scale()
        runner.message_hub.update_scalar(f'train/{self.term}_coef', self.owner.distill_coef)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Save what λ depends on."""
        checkpoint[self.state_key] = list(self.references)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Restore it when a run is resumed; weights alone do not bring it along."""
        if runner._resume and self.state_key in checkpoint:
            self.references = list(checkpoint[self.state_key])

    def _scale(self) -> float:
        """Note the present learning rate and work out λ / λ₀."""
        lr = max(float(group['lr']) for group in self.groups)
        if not self.references or lr >= self.references[0]:
            self.references = [lr]
            return 1.0
        while len(self.references) > 1 and not self._is_decay(lr, self.references[-2]):
            self.references.pop()
        if self._is_decay(lr, self.references[-1]):
            self.references.append(lr)
        if self.policy == 'step':
            num_decays = min(len(self.references) - 1, self.max_decays)
            return min(self.factor**num_decays, self.max_scale)
        if self.policy == 'inverse_lr':
            ratio = self.references[0] / lr if lr else math.inf
            return min(ratio**self.power, self.max_scale)
        return 1.0

    def _is_decay(self, lr: float, reference: float) -> bool:
        return lr < reference and lr <= self.decay_ratio * reference * (1 + 1e-6)
