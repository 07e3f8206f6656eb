"""Measures the costs of training steps, of a detector and of its distilled arms."""

import json
import logging
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import MMLogger
from rich.console import Console
from torch.profiler import profile

from ...errors import ConfigError, check
from ...models import SemiDistiller
from ...models.building import is_config_of
from ...runs import AtomicLocalBackend
from ..comparison.arms import arm_config, find_arm, read_definitions, read_roots
from ..random_batch import random_batch
from ..training_steps import Trainee, seconds_in_turn, without_weights
from .costs import NOISE_BOUND, Costs, cost_table, noise_note
from .counts import count_step
from .memory import KINDS, peak_memory

WARM_UP = 1  # the steps that count operations and memory come before
ROWS = 60  # of the list of operators
WIDE = 170  # characters of the table of costs


@dataclass
class BenchmarkOptions:
    """The options of ``benchmark``; see its help. The data sets of ``config`` are ignored."""

    config: str
    arms: list[str] = field(default_factory=lambda: ['baseline', 'config'])
    arms_file: str | None = None
    cfg_options: dict[str, Any] = field(default_factory=dict)
    shape: tuple[int, int] = (800, 1344)
    batch: int = 2
    objects: int = 8
    device: str | None = None
    amp: bool = False
    steps: int = 15
    json: Path | None = None
    profile: Path | None = None

    def __post_init__(self) -> None:
        check('--shape', self.shape, min(self.shape) >= 32, 'height and width, 32 or more each')
        self.device = self.device or get_device()


def run_benchmark(options: BenchmarkOptions, console: Console | None = None) -> dict[str, Any]:
    """Measure the arms, and print and write their costs.

    Args:
        options: The options.
        console: Where to print.

    Returns:
        The results, as written to JSON.

    Raises:
        ConfigError: if the config cannot be read or distilled, or an arm is unknown.
    """
    console = console or Console()
    if not console.is_terminal:  # a file or pipe has no width of its own
        console.width = max(console.width, WIDE)
    MMLogger.get_current_instance().setLevel(logging.ERROR)  # no line for each weight
    trainees, arms = {}, []
    for name, cfg in arm_configs(options).items():
        console.print(f'building {name}, measuring operations and memory', highlight=False)
        trainees[name], costs = _build(name, cfg, options)
        arms.append(costs)
    with console.status('') as status:
        taken = seconds_in_turn(
            trainees,
            WARM_UP,
            options.steps,
            lambda n: status.update(f'step {n} of {WARM_UP + options.steps}'),
        )
    for costs in arms:
        costs.seconds = taken[costs.name]
    found = {x.name: x.to_dict(arms[0]) for x in arms}
    rows = list(found.values())
    console.print(cost_table(rows, KINDS[torch.device(options.device).type]))
    if note := noise_note(rows):
        console.print(note, highlight=False)
    if options.profile:
        _profile(console, trainees, options.profile)
    result = {**_conditions(options), 'arms': found}
    if options.json:
        text = json.dumps(result, indent=1) + '\n'
        AtomicLocalBackend().put_text(text, str(options.json))
    return result


def arm_configs(options: BenchmarkOptions) -> dict[str, Config]:
    """Make the configs of the arms, for random weights and random data.

    Raises:
        ConfigError: if the config cannot be read or distilled, or an arm is unknown.
    """
    definitions = read_definitions(options.arms_file)
    arms = [find_arm(name, definitions) for name in options.arms]
    roots = read_roots(options.config, options.cfg_options)
    configs = {arm.name: arm_config(arm, roots, options.cfg_options) for arm in arms}
    for name, cfg in configs.items():
        if is_config_of(cfg.model, SemiDistiller):
            accepted = f'2 or more: half of the images of arm {name} have no labels'
            check('--batch', options.batch, options.batch > 1, accepted)
        cfg.model = without_weights(cfg.model)
        if options.amp:
            if torch.device(options.device).type != 'cuda':
                raise ConfigError(f'--amp needs a GPU, and --device is {options.device}')
            cfg.optim_wrapper.type = 'AmpOptimWrapper'
    return configs


def _build(name: str, cfg: Config, options: BenchmarkOptions) -> tuple[Trainee, Costs]:
    """Build an arm, and count its operations and memory in two steps."""
    held_before = 0
    if torch.device(options.device).type == 'cuda':
        torch.ones(8, 8, device=options.device).matmul(torch.ones(8, 8, device=options.device))
        held_before = torch.cuda.memory_allocated(options.device)
    trainee = Trainee(
        cfg,
        lambda model: random_batch(model, options.shape, options.batch, options.objects),
        options.device,
    )
    parts = count_step(trainee)
    return trainee, Costs(name, parts, peak_memory(trainee, held_before))


def _profile(console: Console, trainees: dict[str, Trainee], folder: Path) -> None:
    """Write a trace of a step of each arm, which shows modules and functions, and its operators."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, trainee in trainees.items():
        with profile(with_stack=True) as found:
            trainee.step()
        found.export_chrome_trace(str(folder / f'{name}.trace.json'))
        key = 'self_device_time_total' if trainee.device.type == 'cuda' else 'self_cpu_time_total'
        text = found.key_averages().table(sort_by=key, row_limit=ROWS)
        (folder / f'{name}.operators.txt').write_text(text, encoding='utf-8')
    console.print(f'traces and operators: {folder}', highlight=False)


def _conditions(options: BenchmarkOptions) -> dict[str, Any]:
    """Describe what was measured, and on which machine."""
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else platform.processor()
    given = ('config', 'cfg_options', 'batch', 'objects', 'amp', 'steps')
    return {
        **{key: getattr(options, key) for key in given},
        'shape': list(options.shape),
        'device': name or 'CPU',
        'threads': torch.get_num_threads(),
        'load_average': os.getloadavg()[0],
        'torch': torch.__version__,
        'memory': KINDS[device.type],
        'noise_bound': NOISE_BOUND,
    }
