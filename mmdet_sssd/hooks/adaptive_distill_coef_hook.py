import math

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.hooks.hook import DATA_BATCH
from mmengine.optim import OptimWrapperDict
from mmengine.optim.scheduler import ConstantParamScheduler, LinearParamScheduler
from mmengine.runner import Runner

from ..errors import ConfigError, check, is_number, within
from .model_parts import find_distiller, find_part

MEASURED = ('mean_log', 'num_measured', 'wait', 'last_used')  # in checkpoints, with a ratio


@HOOKS.register_module()
class AdaptiveDistillCoefHook(Hook):
    r"""Lets the distillation coefficient λ follow the learning rate.

    The lower the learning rate, the higher λ, "to sustain the impact of distillation" (SSSD,
    https://arxiv.org/abs/2303.05015, which raises λ once, at the first decay). Before every iteration
    the hook reads the optimizer's actual rate, whichever schedulers set it. With the model's
    ``distill_coef``, λ₀:

    - ``policy='step'``: λ = λ₀ · ``factor`` while the rate is at half of its highest so far, or below:
      after the first drop of a multi-step schedule, in the second half of a cosine. Else λ = λ₀.
    - ``policy='constant'``: λ = λ₀.

    λ is logged as ``NAME_coef`` with the term's name, for ``SSSDDistiller`` as ``distill_coef``. A
    resumed run continues with the same λ. Of several parameter groups, the student's with the highest
    rate counts. Each term can have its own hook.

    With ``ratio``, λ₀ is measured: the gradient that the term, weighted by λ₀, sends into the student's
    features gets ``ratio`` times the norm of the student's own losses' gradient, on the feature levels
    that the term's gradient reaches. Training steps measure both without an extra backward pass; the
    next measurement follows min(n, 20) iterations after the n-th. Until the first, λ₀ is
    ``distill_coef``; then it follows their running mean, within a factor of 1000 of it. While the term
    does not train the student, λ₀ stays; norms that are zero or not finite do not count. Gradients of a
    term on logits, through the student's head, count as the student's own. The final λ is logged.

    Args:
        policy: ``'step'`` or ``'constant'``. Defaults to ``'step'``.
        factor: Factor of λ after the drop, > 0. Defaults to 2.
        term: Name of the term. Defaults to ``'distill'``, that of ``SSSDDistiller``.
        ratio: Norm of the gradient that the term, λ₀ included, sends into the student's features,
            relative to that of the student's own losses, > 0. None, the default: λ₀ is
            ``distill_coef``.

    Raises:
        ConfigError: if an argument is out of range, the model has no such term, another hook of this
            type has it, or there are several optimizers; with ``ratio``, also if the term's λ is 0 or
            it compares heads.

    Example:
        >>> default_hooks = dict(distill_coef=dict(type='AdaptiveDistillCoefHook', ratio=0.5))
    """

    POLICIES = ('step', 'constant')
    DROP = 0.5  # of the highest rate: at or below it, the rate has dropped
    SHARE = 0.1  # least weight of a new measurement in the running mean
    INTERVAL = 20  # most iterations between two measurements
    MAX_CHANGE = 1000.0  # largest factor between λ₀ and distill_coef, up or down

    def __init__(
        self,
        policy: str = 'step',
        factor: float = 2.0,
        term: str = 'distill',
        ratio: float | None = None,
    ) -> None:
        with within(type(self).__name__):
            check('policy', policy, policy in self.POLICIES, ', '.join(self.POLICIES))
            check('factor', factor, is_number(factor) and factor > 0, 'a number > 0')
            accepted = ratio is None or (is_number(ratio) and ratio > 0)
            check('ratio', ratio, accepted, 'a number > 0, or None')
        self.policy = policy
        self.factor = factor
        self.term = term
        self.state_key = f'adaptive_distill_coef.{term}'
        self.highest_lr = 0.0  # so far
        self.ratio = ratio
        self.mean_log = 0.0  # mean log of the λ that makes both gradients' norms equal
        self.num_measured = 0
        self.wait = 0  # iterations before the next measurement
        self.last_used: float | None = None  # λ of the last iteration with the term's loss

    def before_run(self, runner: Runner) -> None:
        """Read the term's λ from the config, before an iteration changes it."""
        self.owner = find_part(runner, self, 'term')
        self.base_coef = self.owner.distill_coef

    def before_train(self, runner: Runner) -> None:
        """Find the student's parameter groups, and check that λ can be set as asked."""
        distiller = find_distiller(runner, self)
        self.taps = distiller.gradient_taps
        if self.ratio is not None:
            self._check_can_be_measured()
        student = {id(p) for p in distiller.student.parameters()}
        if isinstance(runner.optim_wrapper, OptimWrapperDict):
            raise ConfigError(
                'makes several optimizers, but a detector is trained by one; accepted: one '
                'optim_wrapper, with paramwise_cfg for separate learning rates',
                'optim_wrapper',
            )
        self.groups = [
            group
            for group in runner.optim_wrapper.param_groups
            if any(id(p) in student for p in group['params'])
        ]
        if self.policy == 'step' and self.ratio is None and not _may_decay(runner):
            runner.logger.warning(
                f'Term {self.term}: λ will not rise, because no param_scheduler lowers the learning '
                "rate within the run. policy='constant' of its hook keeps λ by intention."
            )

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DATA_BATCH = None
    ) -> None:
        """Set λ for this iteration, and ask for a measurement if one is due."""
        self.owner.distill_coef = self._bounded() * self._factor_now()
        self.owner.is_measured = self.ratio is not None and self.wait == 0
        self.taps.clear()

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: DATA_BATCH = None,
        outputs: dict | None = None,
    ) -> None:
        """Log λ, if the term was at work, and update λ₀ from this step's measurement."""
        if f'loss_{self.term}' in outputs:
            self.last_used = self.owner.distill_coef
            runner.message_hub.update_scalar(f'train/{self.term}_coef', self.last_used)
        if self.owner.is_measured:
            self._update_mean(self.taps.norms(f'terms.{self.term}', 'student'))
        self.owner.is_measured = False
        self.wait = max(self.wait - 1, 0)

    def after_train(self, runner: Runner) -> None:
        """Log the final λ."""
        if self.ratio is not None and self.last_used is not None:
            is_limited = self._bounded() != self._balanced()
            runner.logger.info(
                f'Term {self.term}: λ ended at {self.last_used:.4g} '
                f'(ratio {self.ratio:g}, {self.num_measured} measurements'
                f'{", limited" if is_limited else ""}).'
            )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Save the state of λ."""
        checkpoint[self.state_key] = self.highest_lr
        if self.ratio is not None:
            checkpoint[f'{self.state_key}.ratio'] = {key: getattr(self, key) for key in MEASURED}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Restore the state of λ when a run is resumed, not when only weights are loaded."""
        if runner._resume and self.state_key in checkpoint:
            self.highest_lr = checkpoint[self.state_key]
        if runner._resume and self.ratio is not None:
            vars(self).update(checkpoint.get(f'{self.state_key}.ratio', {}))

    def _check_can_be_measured(self) -> None:
        if self.owner.needs_head:
            raise ConfigError(
                f'is {self.ratio}, but term {self.term!r}, a {type(self.owner).__name__}, compares '
                'outputs of heads; accepted: None, or the name of a term that compares features',
                f'{type(self).__name__}.ratio',
            )
        if self.base_coef == 0:
            raise ConfigError(
                f'is {self.ratio}, but distill_coef of term {self.term!r}, the initial λ, is 0; '
                'accepted: distill_coef > 0, or ratio=None',
                f'{type(self).__name__}.ratio',
            )

    def _update_mean(self, norms: tuple[float, float] | None) -> None:
        """Add the norms of the term's gradient and the student's own to the running mean.

        The mean is over the quotient's logarithm: common factors (loss scale, accumulation) cancel in
        each quotient, and quotients n times too large and n times too small weigh alike.
        """
        if norms is None or not all(0 < norm < math.inf for norm in norms):
            return
        of_term, of_student = norms
        self.num_measured += 1
        self.wait = min(self.num_measured, self.INTERVAL)
        log_equal = math.log(of_student / of_term * self.owner.distill_coef)
        share = max(1 / self.num_measured, self.SHARE)
        self.mean_log += (log_equal - self.mean_log) * share

    def _balanced(self) -> float:
        """Compute λ₀ from the measurements, without bounds."""
        return self.ratio * math.exp(self.mean_log) if self.num_measured else self.base_coef

    def _bounded(self) -> float:
        """Keep λ₀ within a factor of 1000 of ``distill_coef``."""
        least, most = self.base_coef / self.MAX_CHANGE, self.base_coef * self.MAX_CHANGE
        return min(max(self._balanced(), least), most)

    def _factor_now(self) -> float:
        """Record the current learning rate and compute λ / λ₀."""
        lr = max(float(group['lr']) for group in self.groups)
        self.highest_lr = max(self.highest_lr, lr)
        has_dropped = self.highest_lr > 0 and lr <= self.DROP * self.highest_lr * (1 + 1e-6)
        return self.factor if has_dropped and self.policy == 'step' else 1.0


def _may_decay(runner: Runner) -> bool:
    """Tell whether a scheduler may lower the learning rate before the run ends."""
    loop = runner.train_loop
    for scheduler in runner.param_schedulers or ():
        rises = isinstance(scheduler, ConstantParamScheduler) or (  # a warm-up
            isinstance(scheduler, LinearParamScheduler)
            and scheduler.start_factor <= scheduler.end_factor
        )
        if scheduler.param_name != 'lr' or rises:
            continue
        steps = getattr(scheduler, 'milestones', None)
        if steps is None or min(steps, default=math.inf) < (
            loop.max_epochs if scheduler.by_epoch else loop.max_iters
        ):
            return True
    return False
