"""Training steps of several models, taken in turn in one process and timed."""

import copy
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import MessageHub
from mmengine.model import BaseModel, revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import set_random_seed


class Trainee:
    """A model in training that stays where it is: its learning rate is 0, its batch always the same.

    Args:
        cfg: Config with ``model`` and ``optim_wrapper``.
        make_batch: Makes the batch, as a data loader gives it, for the model.
        device: Where it is trained. None: on the GPU, if there is one.
    """

    def __init__(
        self, cfg: Config, make_batch: Callable[[BaseModel], dict], device: str | None = None
    ) -> None:
        init_default_scope(cfg.get('default_scope', 'mmdet'))
        torch.backends.cudnn.benchmark = bool((cfg.get('env_cfg') or {}).get('cudnn_benchmark'))
        progress = MessageHub.get_current_instance()  # what a runner notes there
        progress.update_info('epoch', 0)
        progress.update_info('iter', 0)
        self.device = torch.device(device or get_device())
        self.model = _build_model(cfg).to(self.device).train()
        self.batch = make_batch(self.model)
        self.optim_wrapper = build_optim_wrapper(self.model, cfg.optim_wrapper)
        for group in self.optim_wrapper.param_groups:
            group['lr'] = 0.0

    def step(self) -> float:
        """Take a training step: forward, backward and the optimizer's.

        Returns:
            Its seconds.
        """
        batch = copy.deepcopy(self.batch)  # preprocessing may change boxes in place
        started = self._now()
        self.model.train_step(batch, self.optim_wrapper)
        return self._now() - started

    def _now(self) -> float:
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _build_model(cfg: Config) -> BaseModel:
    """Build a config's model as a runner does."""
    set_random_seed(0)
    config = copy.deepcopy(cfg.model)
    if cfg.get('data_preprocessor') is not None:
        config.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = revert_sync_batchnorm(MODELS.build(config))  # there is one process
    model.init_weights()
    return model


def seconds_in_turn(
    trainees: Mapping[str, Any],
    warm_up: int,
    steps: int,
    tell: Callable[[int], None] = lambda _: None,
) -> dict[str, list[float]]:
    """Take the steps of trainees in turn, so that what else runs slows down all alike.

    Args:
        trainees: What has a :meth:`Trainee.step`, by name.
        warm_up: How many steps of each come first and do not count.
        steps: How many are timed.
        tell: Is called after each round with the number of rounds.

    Returns:
        The seconds of each one's steps. Steps of one index have the same random seed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in trainees}
    for index in range(warm_up + steps):
        for name, trainee in trainees.items():
            set_random_seed(index)
            seconds[name].append(round(trainee.step(), 6))
        tell(index + 1)
    return {name: taken[warm_up:] for name, taken in seconds.items()}
