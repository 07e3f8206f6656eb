"""What a check is, how a group of them is run, and how the results are told."""

import gc
import json
import platform
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

OK, FAILED, SKIPPED = 'ok', 'failed', 'skipped'


class Skipped(Exception):
    """Says why a check cannot be made here."""


class Wrong(Exception):
    """Says what a check found wrong, with the numbers that it had by then."""

    def __init__(self, text: str, **numbers: Any) -> None:
        super().__init__(text)
        self.numbers = numbers


@dataclass(frozen=True)
class Settings:
    """How the checks are made.

    Attributes:
        device: ``'cuda'`` or ``'cpu'``.
        out: Folder for results and what checks write.
        short: Whether small detectors and images are taken, and few steps.
    """

    device: str
    out: Path
    short: bool = False

    @property
    def on_gpu(self) -> bool:
        """Whether there is something here that only a GPU can show."""
        return self.device == 'cuda'


@dataclass
class Result:
    """What came of a check.

    Attributes:
        name: The check's, with its group before a slash.
        result: ``'ok'``, ``'failed'`` or ``'skipped'``.
        numbers: What was measured.
        reason: Why it failed or was skipped.
        seconds: How long it took.
    """

    name: str
    result: str = OK
    numbers: dict[str, Any] = field(default_factory=dict)
    reason: str = ''
    seconds: float = 0.0


Check = Callable[[Settings], dict[str, Any]]
"""Gives numbers; raises Skipped, Wrong, or whatever goes wrong."""


def run_check(name: str, check: Check, settings: Settings) -> Result:
    """Make one check; whatever it raises becomes its result."""
    result, started = Result(name), time.perf_counter()
    try:
        result.numbers = check(settings)
    except Skipped as reason:
        result.result, result.reason = SKIPPED, str(reason)
    except Exception as error:
        result.result, result.numbers = FAILED, getattr(error, 'numbers', {})
        result.reason = (
            str(error) if isinstance(error, Wrong) else f'{type(error).__name__}: {error}'
        )
        if not isinstance(error, Wrong):
            traceback.print_exc()
    result.seconds = round(time.perf_counter() - started, 2)
    return result


def run_group(group: str, checks: Mapping[str, Check], settings: Settings) -> Iterator[Result]:
    """Make the checks of a group, one after the other."""
    import torch

    for name, check in checks.items():
        print(f'{group}/{name} ...', flush=True)
        yield run_check(f'{group}/{name}', check, settings)
        gc.collect()
        if settings.on_gpu:
            torch.cuda.empty_cache()


def within(what: str, found: float, limit: float, **numbers: Any) -> None:
    """Raise Wrong, with the numbers, unless a finding is at most a limit; NaN is not."""
    if not found <= limit:
        raise Wrong(f'{what} is {found:.3g}, the limit {limit:.3g}', **numbers)


def circumstances(settings: Settings) -> dict[str, Any]:
    """Say where the checks were made."""
    import mmcv
    import torch

    found = dict(
        device='on a CPU',
        short=settings.short,
        python=platform.python_version(),
        torch=torch.__version__,
        cuda=torch.version.cuda,
        mmcv=mmcv.__version__,
    )
    if settings.on_gpu:
        gpu = torch.cuda.get_device_properties(0)
        found |= dict(
            device=gpu.name,
            capability=f'{gpu.major}.{gpu.minor}',
            gpus=torch.cuda.device_count(),
            memory_gib=round(gpu.total_memory / 2**30, 1),
            cudnn=torch.backends.cudnn.version(),
        )
    return found


def write_report(out: Path, where: dict[str, Any], results: list[Result]) -> None:
    """Write all results, as JSON and as a table in Markdown."""
    content = dict(where=where, results=[asdict(x) for x in results])
    (out / 'gpu_check.json').write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
    (out / 'gpu_check.md').write_text(markdown(where, results), encoding='utf-8')


def markdown(where: dict[str, Any], results: list[Result]) -> str:
    """Lay the results out as a table."""
    counts = {x: sum(result.result == x for result in results) for x in (OK, FAILED, SKIPPED)}
    lines = [
        f'# GPU checks {"on a CPU" if where.get("device") == "on a CPU" else ""}'.rstrip(),
        '',
        ', '.join(f'{key} {value}' for key, value in where.items() if value is not None),
        '',
        ', '.join(f'{count} {name}' for name, count in counts.items())
        + f', {sum(x.seconds for x in results):.0f} s',
        '',
        '| check | result | numbers | s |',
        '|---|---|---|---|',
    ]
    for x in results:
        reason = f'{x.result}: {" ".join(x.reason.split())[:300]}' if x.reason else x.result
        numbers = ', '.join(f'{key} {_short(value)}' for key, value in x.numbers.items())
        cells = (x.name, reason, numbers, f'{x.seconds:.1f}')
        lines.append(f'| {" | ".join(cell.replace("|", "/") for cell in cells)} |')
    return '\n'.join(lines) + '\n'


def _short(value: Any) -> str:
    return f'{value:.4g}' if isinstance(value, float) else str(value)
