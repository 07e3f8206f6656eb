"""A data loader that continues an epoch where an earlier process left it."""

import inspect
import pickle
import random
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from mmdet.datasets.samplers import MultiSourceSampler
from mmengine.dataset import InfiniteSampler
from torch.utils.data import DataLoader, Sampler, get_worker_info


class ResumableLoader(DataLoader):
    """Yields the same batches, to the bit, that an earlier process's loader would have yielded next.

    With each batch a worker sends the states of its random generators. A restored loader draws the
    indices of skipped batches from the sampler without loading them, assigns each batch to its
    original worker, and starts that worker from its states.

    Made from an existing loader, see :meth:`take_over`.

    Attributes:
        worker_states: Latest states of each worker's generators, by worker number, as of the batches
            yielded so far. Workers without an entry have loaded none.
    """

    @classmethod
    def take_over(cls, loader: DataLoader) -> bool:
        """Convert an unused loader to this class, in place.

        Returns:
            Whether it was converted. Loaders of other classes or without batches are not.
        """
        if type(loader) is not DataLoader or loader.batch_sampler is None:
            return False
        loader.__class__ = cls
        loader.worker_states = {}
        loader._put_back = None
        loader._after_start = None
        loader._num_skipped = 0
        loader.collate_fn = _CollateWithStates(loader.collate_fn)
        return True

    def put_back(
        self,
        num_batches: int,
        worker_states: dict[int, bytes],
        after_start: Callable[[], None] | None = None,
    ) -> None:
        """Make the next epoch begin after some batches.

        Args:
            num_batches: Number of skipped batches.
            worker_states: Earlier value of ``worker_states``.
            after_start: Called after the workers start, before this process loads a batch.
        """
        self._num_skipped = num_batches
        self._put_back = worker_states
        self._after_start = after_start

    def start_workers(self, worker_states: dict[int, bytes]) -> None:
        """Start persistent workers in their states at the end of an epoch."""
        self._num_skipped = None
        self._put_back = worker_states
        self._start()

    @property
    def is_infinite(self) -> bool:
        """Whether the sampler never ends."""
        sampler = getattr(self.batch_sampler, 'sampler', None)
        return isinstance(sampler, (InfiniteSampler, MultiSourceSampler))

    def rewind(self) -> None:
        """Stop workers that read ahead, and restart an infinite sampler."""
        self._iterator = None
        for sampler in (self.batch_sampler.sampler, self.batch_sampler):
            names = inspect.signature(type(sampler)).parameters
            sampler.__init__(**{name: getattr(sampler, name) for name in names})

    def __iter__(self) -> Iterator[Any]:
        """Start or reset the workers at the first batch, and record their states with each."""
        num_skipped = self._num_skipped or 0
        batches = self._start()
        if self._after_start is not None:
            self._after_start()
            self._after_start = None
        if not self.num_workers:
            yield from batches
            return
        for batch, (worker, state) in islice(batches, num_skipped % self.num_workers, None):
            self.worker_states[worker] = state
            yield batch

    def _start(self) -> Iterator[Any]:
        if not self.persistent_workers or self._iterator is None:  # workers will be started
            self.worker_states = dict(self._put_back or {})
        init_fn = self.worker_init_fn
        self.worker_init_fn = _InitWithStates(init_fn, self.worker_states)
        batches = super().__iter__()
        self.worker_init_fn = init_fn
        self._put_back = None
        self._num_skipped = 0
        return batches

    @property
    def _index_sampler(self) -> Sampler:
        sampler = super()._index_sampler
        if self._num_skipped == 0:
            return sampler
        return _SkippingOnce(sampler, self._num_skipped, self.num_workers)


class _SkippingOnce:
    """A batch sampler that skips its first batches, once; None skips all.

    A few empty batches come first, so that the next batch reaches its worker.
    """

    def __init__(self, sampler: Sampler, num_skipped: int | None, num_workers: int) -> None:
        self.sampler = sampler
        self.num_skipped = num_skipped
        self.num_empty = num_skipped % num_workers if num_skipped and num_workers else 0

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[int]]:
        num_skipped, self.num_skipped = self.num_skipped, 0
        if num_skipped is None:
            return
        if num_skipped:
            yield from [[]] * self.num_empty
        yield from islice(self.sampler, num_skipped, None)


class _CollateWithStates:
    """Collates in a worker, and adds the worker's number and states."""

    def __init__(self, collate_fn: Callable[[list], Any]) -> None:
        self.collate_fn = collate_fn

    def __call__(self, samples: list) -> Any:
        worker = get_worker_info()
        batch = self.collate_fn(samples) if samples else None
        return batch if worker is None else (batch, (worker.id, _packed_random_state()))


class _InitWithStates:
    """Initialises a worker with the states of an earlier one."""

    def __init__(self, init_fn: Callable[[int], None] | None, states: dict[int, bytes]) -> None:
        self.init_fn = init_fn
        self.states = dict(states)

    def __call__(self, worker: int) -> None:
        if self.init_fn is not None:
            self.init_fn(worker)
        if worker in self.states:
            set_cpu_random_state(pickle.loads(self.states[worker]))


def _packed_random_state() -> bytes:
    """Pickle the states, torch's as an array, which halves the time."""
    state = cpu_random_state()
    return pickle.dumps({**state, 'torch': state['torch'].numpy()})


def cpu_random_state() -> dict[str, Any]:
    """Get the states of Python's, NumPy's and torch's generators."""
    return {
        'python': random.getstate(),
        'numpy': np.random.get_state(),
        'torch': torch.get_rng_state(),
    }


def set_cpu_random_state(state: dict[str, Any]) -> None:
    """Set the states of Python's, NumPy's and torch's generators."""
    random.setstate(state['python'])
    np.random.set_state(state['numpy'])
    torch.set_rng_state(torch.as_tensor(state['torch']).cpu())
