"""Measures how long the training steps of several configs take, side by side in one process.

``python -m mmdet_sssd.commands.step_times OUT.json CONFIG CONFIG …``
"""

import copy
import json
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import MessageHub
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner, set_random_seed
from torch.utils.data import DataLoader

from ..checkpoints import AtomicLocalBackend
from .dry_run import NEEDS_WORKERS
from .mmdet_tools import user_errors_last

WARM_UP = 3
STEPS = 15


@dataclass(frozen=True)
class StepTimes:
    """How long a config's training steps took: forward, backward and the optimizer's, on one batch.

    Attributes:
        seconds: Of each step, without data loading.
        epoch_length: How many steps an epoch has.
        device: Where they ran.
    """

    seconds: list[float]
    epoch_length: int
    device: str

    @property
    def median(self) -> float:
        """The median step, in seconds."""
        return statistics.median(self.seconds)


def step_times(
    configs: Mapping[str, Config], warm_up: int = WARM_UP, steps: int = STEPS
) -> dict[str, StepTimes]:
    """Measure the training steps of configs in turn, so that what else runs slows down all alike.

    Args:
        configs: The configs, by name.
        warm_up: How many steps of each come first and do not count.
        steps: How many are measured.
    """
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'
    trainees = {name: Trainee(cfg) for name, cfg in configs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in configs}
    for index in range(warm_up + steps):
        for name, trainee in trainees.items():
            set_random_seed(index)
            seconds[name].append(round(trainee.step(), 6))
    return {
        name: StepTimes(seconds[name][warm_up:], trainee.epoch_length, device)
        for name, trainee in trainees.items()
    }


class Trainee:
    """A model in training that stays where it is: its learning rate is 0, its batch always the same.

    Args:
        cfg: The whole config.
    """

    def __init__(self, cfg: Config) -> None:
        init_default_scope(cfg.get('default_scope', 'mmdet'))
        torch.backends.cudnn.benchmark = bool((cfg.get('env_cfg') or {}).get('cudnn_benchmark'))
        progress = MessageHub.get_current_instance()  # what a runner notes there
        progress.update_info('epoch', 0)
        progress.update_info('iter', 0)
        set_random_seed(0)
        loader = _train_loader(cfg)
        self.epoch_length = len(loader)
        self.batch = next(iter(loader))
        self.model = MODELS.build(cfg.model)
        self.model.init_weights()
        self.model.to(get_device()).train()
        self.optim_wrapper = build_optim_wrapper(self.model, cfg.optim_wrapper)
        for group in self.optim_wrapper.param_groups:
            group['lr'] = 0.0

    def step(self) -> float:
        """Take a training step.

        Returns:
            Its seconds.
        """
        batch = copy.deepcopy(self.batch)  # preprocessing may change boxes in place
        started = _now()
        self.model.train_step(batch, self.optim_wrapper)
        return _now() - started


def _train_loader(cfg: Config) -> DataLoader:
    """Build the loader of the training data, without workers, which would run beside the steps."""
    loader = {k: v for k, v in cfg.train_dataloader.items() if k not in NEEDS_WORKERS}
    return Runner.build_dataloader(
        {**loader, 'num_workers': 0, 'persistent_workers': False}, seed=0
    )


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def write_step_times(path: Path, times: Mapping[str, StepTimes]) -> None:
    """Write step times to a JSON file, whole or not at all."""
    content = {name: asdict(x) for name, x in times.items()}
    AtomicLocalBackend().put_text(json.dumps(content, indent=1) + '\n', str(path))


def read_step_times(path: Path) -> dict[str, StepTimes]:
    """Read them back."""
    content = json.loads(path.read_text(encoding='utf-8'))
    return {name: StepTimes(**x) for name, x in content.items()}


def main(out: str, *configs: str) -> None:
    """Measure config files, named by their stems, and write what was found."""
    write_step_times(Path(out), step_times({Path(x).stem: Config.fromfile(x) for x in configs}))


if __name__ == '__main__':
    with user_errors_last():
        main(*sys.argv[1:])
