import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.hooks.hook import DATA_BATCH
from mmengine.runner import EpochBasedTrainLoop, Runner


@HOOKS.register_module()
class RandomStateHook(Hook):
    """Makes a resumed run draw the random numbers that the uninterrupted run would have drawn.

    The states of Python's, NumPy's and torch's generators go into each checkpoint and are put back
    when training resumes. Validation is kept from moving them, because a resumed run does not
    repeat the validation that followed its checkpoint.

    With a fixed ``randomness.seed`` training is then resumed to the bit, on one process: in an epoch
    loop from checkpoints at epoch ends, if no augmentation draws random numbers in worker processes
    (persistent workers start anew); in an iteration loop from any checkpoint, if no augmentation is
    random. On several processes the first one's numbers are resumed; the others start from their
    seeds.
    """

    priority = 'VERY_HIGH'
    STATE_KEY = 'random_state'

    def __init__(self) -> None:
        self.resumed_state: dict | None = None
        self.state_before_val: dict | None = None

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Save the generators' states; during validation (a new best) those that training left."""
        checkpoint[self.STATE_KEY] = self.state_before_val or _get_random_state()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep the states of a run that is resumed until training starts."""
        if runner._resume and runner.rank == 0:
            self.resumed_state = checkpoint.get(self.STATE_KEY)

    def before_train_epoch(self, runner: Runner) -> None:
        """Put the states back before an epoch loop's loader draws its workers' seed."""
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            self._restore()

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: DATA_BATCH = None
    ) -> None:
        """Put the states back after an iteration loop's loader was advanced."""
        self._restore()

    def before_val(self, runner: Runner) -> None:
        """Keep the states as training left them."""
        self.state_before_val = _get_random_state()

    def after_val(self, runner: Runner) -> None:
        """Give training its states back."""
        _set_random_state(self.state_before_val)
        self.state_before_val = None

    def _restore(self) -> None:
        if self.resumed_state is not None:
            _set_random_state(self.resumed_state)
            self.resumed_state = None


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Put the generators' states back, at the end of the context, to what they were before it."""
    state = _get_random_state()
    try:
        yield
    finally:
        _set_random_state(state)


def _get_random_state() -> dict:
    return {
        'python': random.getstate(),
        'numpy': np.random.get_state(),
        'torch': torch.get_rng_state(),
        'cuda': torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _set_random_state(state: dict) -> None:
    random.setstate(state['python'])
    np.random.set_state(state['numpy'])
    torch.set_rng_state(state['torch'].cpu())
    if len(state['cuda']) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([x.cpu() for x in state['cuda']])
