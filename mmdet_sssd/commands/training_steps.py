"""Takes training steps of several models in turn, in one process, and times them."""

import copy
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import BaseModel, revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import set_random_seed

from ..config_tree import nested_configs


class Trainee:
    """A model that repeats the same training step: learning rate 0, always the same batch.

    Args:
        cfg: Config with ``model`` and ``optim_wrapper``.
        make_batch: Makes a batch for the model, as a data loader does.
        device: Device to train on.
    """

    def __init__(self, cfg: Config, make_batch: Callable[[BaseModel], dict], device: str) -> None:
        init_default_scope(cfg.get('default_scope', 'mmdet'))
        torch.backends.cudnn.benchmark = bool((cfg.get('env_cfg') or {}).get('cudnn_benchmark'))
        progress = MessageHub.get_current_instance()  # heads read a runner's progress there
        progress.update_info('epoch', 0)
        progress.update_info('iter', 0)
        self.device = torch.device(device)
        self.model = _build_model(cfg).to(self.device).train()
        self.batch = make_batch(self.model)
        self.optim_wrapper = build_optim_wrapper(self.model, cfg.optim_wrapper)
        for group in self.optim_wrapper.param_groups:
            group['lr'] = 0.0

    def step(self) -> float:
        """Take a training step (forward, backward, optimizer) and return its time in seconds."""
        batch = copy.deepcopy(self.batch)  # preprocessing may change boxes in place
        started = self._now()
        self.model.train_step(batch, self.optim_wrapper)
        return self._now() - started

    def _now(self) -> float:
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def without_weights(model: dict) -> dict:
    """Drop weights to load, and batch augmentations, which resize, from a model's config in place."""
    for _, part in nested_configs(model):
        if isinstance(part.get('init_cfg'), dict) and 'checkpoint' in part['init_cfg']:
            part['init_cfg'] = None
        for key in ('pretrained', 'teacher_ckpt', 'checkpoint'):
            if isinstance(part.get(key), str):
                part[key] = None
        part.pop('batch_augments', None)
    return model


def _build_model(cfg: Config) -> BaseModel:
    """Build a config's model as a runner does."""
    set_random_seed(0)
    config = copy.deepcopy(cfg.model)
    if cfg.get('data_preprocessor') is not None:
        config.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = revert_sync_batchnorm(MODELS.build(config))  # it would need several processes
    model.init_weights()
    return model


def seconds_in_turn(
    trainees: Mapping[str, Any],
    warm_up: int,
    steps: int,
    tell: Callable[[int], None],
) -> dict[str, list[float]]:
    """Take the steps of trainees in turn, so that other load on the machine slows all alike.

    Args:
        trainees: Objects with a method like :meth:`Trainee.step`, by name.
        warm_up: Steps of each that come first and do not count.
        steps: Timed steps of each.
        tell: Called after each round with the number of rounds.

    Returns:
        The seconds of each trainee's steps. Steps of one index have the same random seed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in trainees}
    for index in range(warm_up + steps):
        for name, trainee in trainees.items():
            set_random_seed(index)
            seconds[name].append(round(trainee.step(), 6))
        tell(index + 1)
    return {name: taken[warm_up:] for name, taken in seconds.items()}
