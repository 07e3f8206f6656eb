import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, count, repeat
from typing import Any

import torch
from mmdet.registry import HOOKS
from mmengine.dist import all_gather_object, all_reduce
from mmengine.hooks import Hook
from mmengine.optim import _ParamScheduler
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from mmengine.utils import is_list_of
from torch import Tensor, nn

from .plain_state import parts_of_detector, plain_state, set_plain_state, stopping_hooks
from .resumable_loader import ResumableLoader, cpu_random_state, set_cpu_random_state

UNTRUE = (
    'the gradient of some iterations is lost',
    'Advance dataloader',
    'Skip advancing dataloader',
)
"""What mmengine warns of when it resumes a run, and this hook prevents."""


@HOOKS.register_module()
class RandomStateHook(Hook):
    """Makes a resumed run equal an uninterrupted one, to the bit.

    Checkpoints include the states of Python's, NumPy's and torch's generators, in each process and its
    loader's workers; the position in the data; gradients that wait for the optimizer's step
    (``accumulative_counts``); and plain attributes of the detector and of ``EarlyStoppingHook`` that
    training has changed, such as the image size of ``BatchSyncRandomResize``. Resuming restores them,
    and skips the data already read without loading it. Validation does not change the generators.

    This holds with a fixed ``randomness.seed`` and as many processes as before. Exceptions are
    transforms that cache images (``CachedMosaic``, ``CachedMixUp``), custom loader classes and loops,
    loaders given to an ``IterBasedTrainLoop`` as objects instead of configs,
    ``MultiDataAspectRatioBatchSampler``, and, up to rounding, waiting gradients of several processes.
    On another number of processes only the first gets its states back, and the others' generators start
    anew. There, and with another batch size, an epoch continues after the same fraction; learning
    rates stay as they were, and schedules that count iterations go on counting them: a warning says so.

    Checkpoints have all processes' states if ``SafeCheckpointHook`` saves them, else the first
    process's. After resuming, buffers that differ between processes (batch norms' statistics without
    SyncBN) are the first process's in all of them.
    """

    priority = 'VERY_HIGH'
    STATE_KEY = 'random_state'
    OTHERS_KEY = 'random_states_of_ranks'
    PLACE_KEY = 'place_in_data'
    GRADIENTS_KEY = 'gradients'

    def __init__(self) -> None:
        self.resumed_state: dict | None = None
        self.resumed_attributes: dict = {}
        self.state_before_val: dict | None = None
        self.counts_before_val: dict = {}  # of a validation since the last iteration
        self.schedule_before_val: tuple[list, list] | None = None  # likewise
        self.states_of_ranks: list[dict] = []
        self.loader: ResumableLoader | None = None
        self.place = (0, 0)  # passes through the data, batches in this one
        self.gradients: dict[str, Tensor] = {}

    def before_run(self, runner: Runner) -> None:
        """Note the plain attributes before training."""
        self.attributes = _attributes(runner)

    def before_saving(self, runner: Runner) -> None:
        """Collect all processes' states; called in each process."""
        if runner.world_size > 1:
            self.states_of_ranks = all_gather_object(self._state(runner))
            self.gradients = _waiting_gradients(runner)
            for gradient in self.gradients.values():
                all_reduce(gradient, 'mean')

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Save the states; during validation (a new best) the generators' from before it."""
        checkpoint[self.STATE_KEY] = self._state(runner)
        checkpoint[self.PLACE_KEY] = (*self.place, len(runner.train_dataloader))
        if runner.world_size == 1:
            self.gradients = _waiting_gradients(runner)
        elif self.states_of_ranks:
            checkpoint[self.OTHERS_KEY] = self.states_of_ranks
        if 'optimizer' in checkpoint and (runner.world_size == 1 or self.states_of_ranks):
            checkpoint[self.GRADIENTS_KEY] = {k: x.cpu() for k, x in self.gradients.items()}
        if self.schedule_before_val and {'optimizer', 'param_schedulers'} <= checkpoint.keys():
            checkpoint['param_schedulers'], settings = self.schedule_before_val
            for group, before in zip(
                checkpoint['optimizer']['param_groups'], settings, strict=True
            ):
                group.update(before)
        self.states_of_ranks, self.gradients = [], {}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep a resumed run's states until training starts."""
        if not runner._resume:
            return
        states = checkpoint.get(self.OTHERS_KEY, [checkpoint.get(self.STATE_KEY)])
        if len(states) == runner.world_size:
            self.resumed_state = states[runner.rank]
        elif runner.rank == 0 and states[0] is not None:
            self.resumed_state = {**states[0], 'workers': {}}
        self.resumed_attributes = dict(
            (self.resumed_state or states[0] or {}).get('attributes', {})
        )
        # before a validation that was due; the detector's when hooks have seen the config's values
        set_plain_state(stopping_hooks(runner), self.resumed_attributes)
        now = len(runner.train_dataloader)
        num_passes, num_read, num_batches = checkpoint.get(self.PLACE_KEY, (0, 0, now))
        if now != num_batches:
            num_read = round(num_read / num_batches * now)
            if isinstance(runner.train_loop, EpochBasedTrainLoop):
                checkpoint['meta']['iter'] = num_passes * now + num_read
            _warn_of_rates(runner, checkpoint, num_batches)
        self.place = (num_passes, num_read)
        if self.GRADIENTS_KEY in checkpoint:
            parameters = _parameters(runner)
            for name, gradient in checkpoint[self.GRADIENTS_KEY].items():
                parameters[name].grad = gradient.to(parameters[name])
            runner.logger.addFilter(
                lambda record: not any(x in record.getMessage() for x in UNTRUE)
            )
        hub = checkpoint['message_hub']
        known = hub['log_scalars'].keys() | hub['runtime_info'].keys()
        hub['resumed_keys'] = {k: x for k, x in hub['resumed_keys'].items() if k in known}

    def before_train(self, runner: Runner) -> None:
        """Make the loader resumable, if its class allows."""
        loop, config = runner.train_loop, runner._train_dataloader
        by_iter = isinstance(loop, IterBasedTrainLoop)  # which has read ahead
        if not (by_iter or isinstance(loop, EpochBasedTrainLoop)):
            return
        if by_iter and not isinstance(config, dict):
            return
        if not ResumableLoader.take_over(loop.dataloader):
            return
        self.loader = loop.dataloader
        if by_iter:
            loop.dataloader_iterator = None
            self.loader.rewind(config, runner.seed)
            num_done = loop.iter
            if hasattr(loop, 'fast_forward_on_resume'):  # OneDL's, which then asks for none again
                loop.fast_forward_on_resume, num_done = True, 0
            loop.dataloader_iterator = self._batches(num_done)
        self.loader.skip_passes(self.place[0])

    def before_train_epoch(self, runner: Runner) -> None:
        """Restore the states before an epoch loop's loader starts its workers, or let it do so."""
        set_plain_state(parts_of_detector(runner), self.resumed_attributes)
        self.resumed_attributes = {}
        loop = runner.train_loop
        if not isinstance(loop, EpochBasedTrainLoop):
            return
        first = self.place[1]
        if self.loader is not None and first:
            self.loader.start_at(first, self._resumed_workers, self._restore)
            run_iter = loop.run_iter
            loop.run_iter = lambda idx, data_batch: run_iter(first + idx, data_batch)
            return
        if self._resumed_workers and self.loader.persistent_workers:
            _switch_pipelines(runner)
            self.loader.start_workers(self._resumed_workers)
        self._restore()

    def before_train_iter(self, runner: Runner, batch_idx: int, **kwargs: Any) -> None:
        """Record the position in the epoch; restore the states if the loader did not."""
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            self.place = (runner.epoch, batch_idx + 1)
        self.counts_before_val, self.schedule_before_val = {}, None
        self._restore()

    def after_train_epoch(self, runner: Runner) -> None:
        """Move on to the next epoch."""
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            self.place = (runner.epoch + 1, 0)
            vars(runner.train_loop).pop('run_iter', None)

    def before_val(self, runner: Runner) -> None:
        """Save the training states."""
        self.state_before_val = _get_random_state()
        self.counts_before_val = plain_state(stopping_hooks(runner))
        self.schedule_before_val = _schedule(runner)

    def after_val(self, runner: Runner) -> None:
        """Restore the training states."""
        _set_random_state(self.state_before_val)
        self.state_before_val = None

    def _batches(self, num_done: int) -> Iterator[Any]:
        """Yield an iteration loop's batches, pass by pass; None for those that it asks for again."""
        yield from repeat(None, num_done)
        state = _get_random_state()  # starting the workers draws another seed

        def after_start() -> None:
            _set_random_state(state)
            self._restore()

        first_pass, num_skipped = self.place
        self.loader.start_at(num_skipped, self._resumed_workers, after_start)
        for num_passes in count(first_pass):
            self.loader.set_epoch(num_passes)
            for num_read, batch in enumerate(self.loader, num_skipped + 1):
                self.place = (num_passes, num_read)
                yield batch
            num_skipped = 0

    def _state(self, runner: Runner) -> dict:
        if self.resumed_state is not None:  # not trained since
            state = self.resumed_state
        else:
            workers = self.loader.worker_states if self.loader else {}
            state = {**(self.state_before_val or _get_random_state()), 'workers': dict(workers)}
        # a checkpoint saved after a validation, before the next iteration, repeats it when resumed
        now = _attributes(runner) | self.resumed_attributes | self.counts_before_val
        changed = {k: x for k, x in now.items() if x != self.attributes.get(k, x)}
        return {**state, 'attributes': changed}

    def _restore(self) -> None:
        if self.resumed_state is not None:
            _set_random_state(self.resumed_state)
            self.resumed_state = None

    @property
    def _resumed_workers(self) -> dict[int, bytes]:
        return (self.resumed_state or {}).get('workers', {})


def _switch_pipelines(runner: Runner) -> None:
    """Let hooks that restart the workers at an epoch (PipelineSwitchHook) catch up with the last."""
    loop = runner.train_loop
    loop._epoch -= 1
    for hook in runner.hooks:
        if hasattr(hook, '_restart_dataloader'):
            hook.before_train_epoch(runner)
    loop._epoch += 1


def _warn_of_rates(runner: Runner, checkpoint: dict, num_batches: int) -> None:
    """Warn of what does not follow a new length of epochs, which had ``num_batches`` iterations."""
    states = checkpoint.get('param_schedulers', [])
    states = states if isinstance(states, list) else chain(*states.values())  # several optimizers
    is_by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
    counted = is_by_epoch and any(not x['by_epoch'] and x['last_step'] < x['end'] for x in states)
    also = ', and their schedules count iterations, so that they come at other epochs'
    runner.logger.warning(
        f'An epoch has {len(runner.train_dataloader)} iterations, but had {num_batches} when the '
        'checkpoint was saved, with another number of processes or batch size: learning rates stay as '
        f'they were{also if counted else ""}. For other ones start a new run with load_from.'
    )


def _schedule(runner: Runner) -> tuple[list, list] | None:
    """Copy the states of schedulers, some of which follow validations, and the settings they set."""
    if not is_list_of(
        runner.param_schedulers, _ParamScheduler
    ):  # not training, or several optimizers
        return None
    states = [copy.deepcopy(x.state_dict()) for x in runner.param_schedulers]
    groups = runner.optim_wrapper.param_groups
    return states, [{k: x for k, x in group.items() if k != 'params'} for group in groups]


def _attributes(runner: Runner) -> dict:
    return plain_state([*parts_of_detector(runner), *stopping_hooks(runner)])


def _parameters(runner: Runner) -> dict[str, nn.Parameter]:
    return {k.removeprefix('module.'): x for k, x in runner.model.named_parameters()}


def _waiting_gradients(runner: Runner) -> dict[str, Tensor]:
    """Copy the gradients that wait for the optimizer's step."""
    if runner.optim_wrapper.should_update():
        return {}
    return {k: x.grad.clone() for k, x in _parameters(runner).items() if x.grad is not None}


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Restore the generators' states at the end of the context."""
    state = _get_random_state()
    try:
        yield
    finally:
        _set_random_state(state)


def _get_random_state() -> dict:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {**cpu_random_state(), 'cuda': cuda}


def _set_random_state(state: dict) -> None:
    set_cpu_random_state(state)
    if len(state['cuda']) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([x.cpu() for x in state['cuda']])
