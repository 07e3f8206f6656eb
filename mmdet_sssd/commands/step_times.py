"""Times the training steps of several configs in alternation, in one process.

``python -m mmdet_sssd.commands.step_times OUT.json CONFIG CONFIG …``
"""

import json
import statistics
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner, set_random_seed

from ..checkpoints import AtomicLocalBackend
from ..checks.dry_run import NEEDS_WORKERS
from ..errors import user_errors_last
from .training_steps import Trainee, seconds_in_turn

WARM_UP = 3
STEPS = 15


@dataclass(frozen=True)
class StepTimes:
    """Times of a config's training steps (forward, backward, optimizer) on one batch.

    Attributes:
        seconds: Time of each step, without data loading.
        epoch_length: Number of steps in an epoch.
        device: Name of the device.
        idle: Fraction of the run, in [0, 1], whose steps are stock's, as ``TeacherScheduleHook`` stops
            the only teacher; these steps are not in ``seconds``.
    """

    seconds: list[float]
    epoch_length: int
    device: str
    idle: float = 0.0

    @property
    def median(self) -> float:
        """The median step, in seconds."""
        return statistics.median(self.seconds)


def step_times(
    configs: Mapping[str, Config], warm_up: int = WARM_UP, steps: int = STEPS
) -> dict[str, StepTimes]:
    """Time the training steps of configs in turn, each on the first batch of its data.

    Args:
        configs: The configs, by name.
        warm_up: Steps of each that come first and do not count.
        steps: Timed steps of each.
    """
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'
    lengths, trainees = {}, {}
    for name, cfg in configs.items():
        batch, lengths[name] = _first_batch(cfg)
        trainees[name] = Trainee(cfg, lambda _, batch=batch: batch)
    seconds = seconds_in_turn(trainees, warm_up, steps)
    return {
        name: StepTimes(seconds[name], lengths[name], device, _idle(cfg))
        for name, cfg in configs.items()
    }


def _first_batch(cfg: Config) -> tuple[dict, int]:
    """Load the first batch of a config's training data, and count the batches of an epoch."""
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    set_random_seed(0)
    config = {k: v for k, v in cfg.train_dataloader.items() if k not in NEEDS_WORKERS}
    config |= dict(
        num_workers=0, persistent_workers=False
    )  # workers would run while steps are timed
    loader = Runner.build_dataloader(config, seed=0)
    return next(iter(loader)), len(loader)


def _idle(cfg: Config) -> float:
    """Read how much of a run has stock's steps; nothing of it if there are several teachers."""
    hooks = [*(cfg.get('default_hooks') or {}).values(), *(cfg.get('custom_hooks') or [])]
    schedules = [x for x in hooks if x and str(x['type']).endswith('TeacherScheduleHook')]
    if len(schedules) != 1 or cfg.model.get('teachers'):
        return 0.0
    return 1 - schedules[0].get('until', 1.0) / schedules[0].get('every', 1)


def write_step_times(path: Path, times: Mapping[str, StepTimes]) -> None:
    """Write step times to a JSON file, atomically."""
    content = {name: asdict(x) for name, x in times.items()}
    AtomicLocalBackend().put_text(json.dumps(content, indent=1) + '\n', str(path))


def read_step_times(path: Path) -> dict[str, StepTimes]:
    """Read step times from a JSON file."""
    content = json.loads(path.read_text(encoding='utf-8'))
    return {name: StepTimes(**x) for name, x in content.items()}


def main(out: str, *configs: str) -> None:
    """Time the steps of config files and write the times by the files' stems."""
    write_step_times(Path(out), step_times({Path(x).stem: Config.fromfile(x) for x in configs}))


if __name__ == '__main__':
    with user_errors_last():
        main(*sys.argv[1:])
