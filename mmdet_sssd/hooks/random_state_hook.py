from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from mmdet.registry import HOOKS
from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.hooks.hook import DATA_BATCH
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from ..datasets.resumable_loader import ResumableLoader, cpu_random_state, set_cpu_random_state


@HOOKS.register_module()
class RandomStateHook(Hook):
    """Makes a resumed run see the same data and random numbers as an uninterrupted one.

    Checkpoints include the states of Python's, NumPy's and torch's generators, in each process and
    its loader's workers, and the position in the epoch. Resuming restores them and skips the data
    already read without loading it. Validation does not change the states.

    With a fixed ``randomness.seed`` a run on as many processes as before then resumes to the bit from
    any checkpoint, in an epoch loop, or in an iteration loop with an ``InfiniteSampler`` or
    ``MultiSourceSampler``. Exceptions are transforms that cache images (``CachedMosaic``) and custom
    loader classes. With other samplers an iteration loop reads the data again from the start, and
    augmentations draw other numbers. On another number of processes all generators get the first
    process's states, and an epoch continues after the same fraction.

    Checkpoints have all processes' states if ``SafeCheckpointHook`` saves them, else the first
    process's. After resuming, buffers that differ between processes (batch norms' statistics without
    SyncBN) are the first process's in all of them.
    """

    priority = 'VERY_HIGH'
    STATE_KEY = 'random_state'
    OTHERS_KEY = 'random_states_of_ranks'
    PLACE_KEY = 'place_in_epoch'

    def __init__(self) -> None:
        self.resumed_state: dict | None = None
        self.state_before_val: dict | None = None
        self.states_of_ranks: list[dict] = []
        self.loader: ResumableLoader | None = None
        self.num_read = self.num_resumed = 0  # batches in the epoch

    def before_saving(self, runner: Runner) -> None:
        """Collect all processes' states; called in each process."""
        if runner.world_size > 1:
            self.states_of_ranks = all_gather_object(self._state())

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Save the generators' states; during validation (a new best) those from before it."""
        checkpoint[self.STATE_KEY] = self._state()
        checkpoint[self.PLACE_KEY] = (self.num_read, len(runner.train_dataloader))
        if self.states_of_ranks:
            checkpoint[self.OTHERS_KEY] = self.states_of_ranks
            self.states_of_ranks = []

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep a resumed run's states until training starts."""
        if not runner._resume:
            return
        states = checkpoint.get(self.OTHERS_KEY, [checkpoint.get(self.STATE_KEY)])
        if len(states) == runner.world_size:
            self.resumed_state = states[runner.rank]
        elif runner.rank == 0 and states[0] is not None:
            self.resumed_state = {**states[0], 'workers': {}}
        num_read, num_batches = checkpoint.get(self.PLACE_KEY, (0, 1))
        now = len(runner.train_dataloader)
        self.num_resumed = num_read if now == num_batches else round(num_read / num_batches * now)
        self.num_read = self.num_resumed

    def before_train(self, runner: Runner) -> None:
        """Make the loader resumable, if its class allows."""
        loop = runner.train_loop
        if not ResumableLoader.take_over(loop.dataloader):
            return
        if isinstance(loop, EpochBasedTrainLoop):
            self.loader = loop.dataloader
        elif isinstance(loop, IterBasedTrainLoop) and loop.dataloader.is_infinite:
            self.loader = loop.dataloader
            loop.dataloader_iterator = None  # it has read ahead
            self.loader.rewind()
            loop.dataloader_iterator = _Batches(
                self.loader, loop.iter, self._resumed_workers, self._restore
            )

    def before_train_epoch(self, runner: Runner) -> None:
        """Restore the states before an epoch loop's loader starts its workers, or let it do so."""
        loop = runner.train_loop
        if not isinstance(loop, EpochBasedTrainLoop):
            return
        first, self.num_resumed = self.num_resumed, 0
        if self.loader is not None and first:
            self.loader.put_back(first, self._resumed_workers, self._restore)
            run_iter = loop.run_iter
            loop.run_iter = lambda idx, data_batch: run_iter(first + idx, data_batch)
            return
        if self._resumed_workers and self.loader.persistent_workers:
            self.loader.start_workers(self._resumed_workers)
        self._restore()

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DATA_BATCH = None
    ) -> None:
        """Record the position in the epoch; restore the states if the loader did not."""
        self.num_read = batch_idx + 1
        self._restore()

    def after_train_epoch(self, runner: Runner) -> None:
        """Reset the position in the epoch."""
        self.num_read = 0
        vars(runner.train_loop).pop('run_iter', None)

    def before_val(self, runner: Runner) -> None:
        """Save the training states."""
        self.state_before_val = _get_random_state()

    def after_val(self, runner: Runner) -> None:
        """Restore the training states."""
        _set_random_state(self.state_before_val)
        self.state_before_val = None

    def _state(self) -> dict:
        if self.resumed_state is not None:  # not trained since
            return self.resumed_state
        workers = self.loader.worker_states if self.loader else {}
        return {**(self.state_before_val or _get_random_state()), 'workers': dict(workers)}

    def _restore(self) -> None:
        if self.resumed_state is not None:
            _set_random_state(self.resumed_state)
            self.resumed_state = None

    @property
    def _resumed_workers(self) -> dict[int, bytes]:
        return (self.resumed_state or {}).get('workers', {})


class _Batches:
    """Iterates over an iteration loop's batches; skipped ones are None."""

    def __init__(
        self,
        loader: ResumableLoader,
        num_skipped: int,
        worker_states: dict[int, bytes],
        after_start: Callable[[], None],
    ) -> None:
        self.loader = loader
        self.num_skipped = self.num_left = num_skipped
        self.worker_states = worker_states
        self.after_start = after_start
        self.batches: Iterator | None = None

    def __next__(self) -> DATA_BATCH:
        if self.num_left:
            self.num_left -= 1
            return None
        if self.batches is None:
            state = _get_random_state()  # starting the workers draws another seed

            def after_start() -> None:
                _set_random_state(state)
                self.after_start()

            self.loader.put_back(self.num_skipped, self.worker_states, after_start)
            self.batches = iter(self.loader)
        return next(self.batches)


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
