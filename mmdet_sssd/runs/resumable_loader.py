"""A data loader that continues an epoch where an earlier process left it."""

import pickle
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from mmdet.registry import DATA_SAMPLERS
from torch.utils.data import DataLoader, get_worker_info


class ResumableLoader(DataLoader):
    """Yields the same batches, to the bit, that an earlier process's loader would have yielded next.

    With each batch a worker sends the states of its random generators. A restored loader draws the
    indices of skipped batches from the sampler without loading them, assigns each batch to its
    original worker, and starts that worker from its states. Samplers that draw random numbers get
    generators of their own: they run ahead of the training, by how much depends on the workers.

    Made from an existing loader, see :meth:`take_over`.

    Attributes:
        worker_states: Latest states of each worker's generators, by worker number, as of the batches
            yielded so far. Workers without an entry have loaded none.
        num_passes: Number of passes through the sampler that have begun.
    """

    @classmethod
    def take_over(cls, loader: DataLoader) -> bool:
        """Convert an unused loader to this class, in place, unless it has another or no batches."""
        if type(loader) is not DataLoader or loader.batch_sampler is None:
            return False
        loader.__class__ = cls
        loader.worker_states = {}
        loader.num_passes = 0
        loader.start_at(0, {})
        loader.collate_fn = partial(_collate_with_states, loader.collate_fn)
        return True

    def start_at(
        self,
        num_batches: int,
        worker_states: dict[int, bytes],
        after_start: Callable[[], None] = lambda: None,
    ) -> None:
        """Make the next pass begin after some batches.

        Args:
            num_batches: Number of skipped batches.
            worker_states: Earlier value of ``worker_states``.
            after_start: Called after the workers start, before this process loads a batch.
        """
        self._num_skipped = num_batches
        self._first_states = worker_states
        self._after_start = after_start

    def start_workers(self, worker_states: dict[int, bytes]) -> None:
        """Start persistent workers in their states at the end of a pass."""
        self._num_skipped = None
        self._first_states = worker_states
        self._start()

    def rewind(self, config: dict, seed: int) -> None:
        """Stop workers that read ahead, and give the samplers the state of newly built ones.

        Args:
            config: The loader's config.
            seed: The runner's. A sampler keeps its own, which all processes share.
        """
        self._iterator = None
        batches, sampler = self.batch_sampler, self.batch_sampler.sampler
        for_batches = dict(sampler=sampler, batch_size=config['batch_size'])
        for_sampler = dict(dataset=self.dataset, seed=getattr(sampler, 'seed', seed))
        built = ('sampler', sampler, for_sampler), ('batch_sampler', batches, for_batches)
        for key, used, defaults in built:
            if config.get(key) is not None:  # torch's own batch sampler keeps no state
                used.__dict__ = DATA_SAMPLERS.build(config[key], default_args=defaults).__dict__

    def skip_passes(self, number: int) -> None:
        """Run the sampler, which may carry a state on, through passes without loading them."""
        for self.num_passes in range(number):
            self.set_epoch(self.num_passes)
            deque(_with_own_numbers(self.batch_sampler.sampler, self._seed), maxlen=0)
        self.num_passes = number

    def set_epoch(self, epoch: int) -> None:
        """Tell the sampler the number of the next pass."""
        if hasattr(self.batch_sampler.sampler, 'set_epoch'):
            self.batch_sampler.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        """Start or reset the workers at the first batch, and record their states with each."""
        num_skipped, after_start = self._num_skipped, self._after_start
        batches = self._start()
        self.num_passes += 1
        after_start()
        if not self.num_workers:
            yield from batches
            return
        for batch, (worker, state) in islice(batches, num_skipped % self.num_workers, None):
            self.worker_states[worker] = state
            yield batch

    def _start(self) -> Iterator[Any]:
        if not self.persistent_workers or self._iterator is None:  # workers will be started
            self.worker_states = dict(self._first_states)
        init_fn = self.worker_init_fn
        self.worker_init_fn = partial(_init_with_states, init_fn, dict(self.worker_states))
        batches = super().__iter__()
        self.worker_init_fn = init_fn
        self.start_at(0, {})
        return batches

    @property
    def _seed(self) -> int:
        return getattr(self.batch_sampler.sampler, 'seed', 0) + self.num_passes

    @property
    def _index_sampler(self) -> '_Indices':
        return _Indices(self)


class _Indices:
    """What a loader's iterator, which persistent workers keep, asks for indices in each pass.

    A few empty batches come first, so that the next batch reaches its worker.
    """

    def __init__(self, loader: ResumableLoader) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader.batch_sampler)

    def __iter__(self) -> Iterator[list[int]]:
        loader, skipped = self.loader, self.loader._num_skipped
        if skipped is None:
            return iter(())
        num_empty = skipped % loader.num_workers if loader.num_workers else 0
        batches = _with_own_numbers(loader.batch_sampler, loader._seed)
        return chain([[]] * num_empty, islice(batches, skipped, None))


def _with_own_numbers(values: Iterable, seed: int) -> Iterator:
    """Iterate with the random generators in states of the iterator's own."""
    training = cpu_random_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    own = cpu_random_state()
    set_cpu_random_state(training)
    iterator = iter(values)
    while True:
        training = cpu_random_state()
        set_cpu_random_state(own)
        try:
            value = next(iterator)
            own = cpu_random_state()
        except StopIteration:
            return
        finally:
            set_cpu_random_state(training)
        yield value


def _collate_with_states(collate_fn: Callable[[list], Any], samples: list) -> Any:
    """Collate; in a worker, add its number and states, torch's as an array, which is faster."""
    worker = get_worker_info()
    batch = collate_fn(samples) if samples else None
    if worker is None:
        return batch
    state = cpu_random_state()
    return batch, (worker.id, pickle.dumps({**state, 'torch': state['torch'].numpy()}))


def _init_with_states(
    init_fn: Callable[[int], None] | None, states: dict[int, bytes], worker: int
) -> None:
    """Initialise a worker, with the states of an earlier one if there are any."""
    if init_fn is not None:
        init_fn(worker)
    if worker in states:
        set_cpu_random_state(pickle.loads(states[worker]))


def cpu_random_state() -> dict[str, Any]:
    """Get the states of Python's, NumPy's and torch's generators."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    return dict(zip(('python', 'numpy', 'torch'), states, strict=True))


def set_cpu_random_state(state: dict[str, Any]) -> None:
    """Set the states of Python's, NumPy's and torch's generators."""
    random.setstate(state['python'])
    np.random.set_state(state['numpy'])
    torch.set_rng_state(torch.as_tensor(state['torch']).cpu())
