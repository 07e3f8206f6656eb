"""Traces one training step and lists its operators by part."""

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from ..training_steps import Trainee
from .parts import LABEL, OTHER, PARTS, Parts

TOP = 8  # operators listed per part
BACKWARD = 'autograd::engine::evaluate_function'

Operators = dict[str, Counter[str]]
"""Seconds by part and operator."""


def profile_step(trainee: Trainee, trace: Path) -> Operators:
    """Take a training step under the profiler.

    Args:
        trainee: The model in training, after its first step.
        trace: File for the trace, to open in chrome://tracing or Perfetto.

    Returns:
        The time of each operator itself, without what it calls, by part; on the GPU if there is one.
    """
    on_gpu = trainee.device.type == 'cuda'
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with Parts(trainee.model) as parts, profile(activities=activities) as found:
        trainee.step()
    found.export_chrome_trace(str(trace))
    return operators_by_part(found.events(), parts, on_gpu)


def operators_by_part(events: list[FunctionEvent], parts: Parts, on_gpu: bool) -> Operators:
    """Sum the operators' times."""
    operators: Operators = defaultdict(Counter)
    for event in events:
        if event.device_type == torch.autograd.DeviceType.CPU:
            microseconds = _device_time(event) if on_gpu else event.self_cpu_time_total
            if microseconds and not event.name.startswith(LABEL):
                operators[_part_of(event, parts)][event.name] += microseconds / 1e6
    return operators


def _part_of(event: FunctionEvent, parts: Parts) -> str:
    """Find an operator's part by the label or the autograd node that it runs in."""
    around: Any = event
    while around is not None:
        if around.name.startswith(LABEL):
            return around.name[len(LABEL) :]
        if around.name.startswith(BACKWARD):
            return parts.of_node(around.sequence_nr)
        around = around.cpu_parent
    return OTHER


def _device_time(event: FunctionEvent) -> float:
    """Read the time of an operator's own kernels; torch 2.4 renamed it."""
    names = ('self_device_time_total', 'self_cuda_time_total')
    return next(getattr(event, name) for name in names if hasattr(event, name))


def operators_text(operators: Operators) -> str:
    """List the parts with their times, each with its slowest operators."""
    total = sum(map(Counter.total, operators.values())) or 1.0
    lines = []
    for part in PARTS:
        if part in operators:
            taken = operators[part].total()
            lines.append(f'{part}: {taken:.4g} s, {taken / total:.1%}')
            for name, seconds in operators[part].most_common(TOP):
                lines.append(f'    {seconds:10.4g} s  {name}')
    return '\n'.join(lines) + '\n'
