"""A trace of one training step, and its operators by part."""

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from ..training_steps import Trainee
from .parts import LABEL, OTHER, PARTS, Parts

TOP = 8  # operators of each part that are listed
BACKWARD = 'autograd::engine::evaluate_function'

Operators = dict[str, Counter[str]]
"""Seconds by part and operator."""


def profile_step(trainee: Trainee, trace: Path) -> Operators:
    """Take a training step under the profiler.

    Args:
        trainee: What trains; it has taken a step before.
        trace: Where the trace is written to, for chrome://tracing or Perfetto.

    Returns:
        The time of each operator by part, without what it calls: on the GPU, if there is one.
    """
    on_gpu = trainee.device.type == 'cuda'
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with Parts(trainee.model) as parts, profile(activities=activities) as found:
        trainee.step()
    found.export_chrome_trace(str(trace))
    return operators_by_part(found.events(), parts, on_gpu)


def operators_by_part(events: list[FunctionEvent], parts: Parts, on_gpu: bool) -> Operators:
    """Sum the time of operators."""
    operators: Operators = defaultdict(Counter)
    for event in events:
        if event.device_type == torch.autograd.DeviceType.CPU:
            microseconds = _device_time(event) if on_gpu else event.self_cpu_time_total
            if microseconds and not event.name.startswith(LABEL):
                operators[_part_of(event, parts)][event.name] += microseconds / 1e6
    return operators


def _part_of(event: FunctionEvent, parts: Parts) -> str:
    """Name the part of an operator: by the label, or the autograd node, that it is inside of."""
    around: Any = event
    while around is not None:
        if around.name.startswith(LABEL):
            return around.name[len(LABEL) :]
        if around.name.startswith(BACKWARD):
            return parts.of_node(around.sequence_nr)
        around = around.cpu_parent
    return OTHER


def _device_time(event: FunctionEvent) -> float:
    """Time of the kernels that an operator starts itself; torch renamed it in 2.4."""
    names = ('self_device_time_total', 'self_cuda_time_total')
    return next(getattr(event, name) for name in names if hasattr(event, name))


def operators_text(operators: Operators) -> str:
    """List the parts with their time, and the operators that take most of it."""
    total = sum(map(Counter.total, operators.values())) or 1.0
    lines = []
    for part in PARTS:
        if part in operators:
            taken = operators[part].total()
            lines.append(f'{part}: {taken:.4g} s, {taken / total:.1%}')
            for name, seconds in operators[part].most_common(TOP):
                lines.append(f'    {seconds:10.4g} s  {name}')
    return '\n'.join(lines) + '\n'
