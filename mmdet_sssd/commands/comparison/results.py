"""The results of a comparison: a file for each finished cell, and one with all of them."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ...checkpoints import AtomicLocalBackend
from ...config_tree import overridden, overrides
from ...errors import ConfigError
from ..step_times import StepTimes, read_step_times
from .metrics import standard_metrics

DEPTH = 4  # of keys with a line of their own in the file, such as a config's keys and seeds


@dataclass
class CellResult:
    """The result of a cell.

    Attributes:
        arm: Name of the arm.
        seed: The seed.
        unit: Unit of the curve: ``'epoch'`` or ``'iteration'``.
        iterations: Number of training iterations.
        train_seconds: Their total time, with data loading and without validation.
        peak_memory: MiB, see :func:`~.training_cost_hook.peak_memory`.
        device: Name of the training device.
        versions: Versions of this package and torch.
        metrics: The evaluators' metrics for the last checkpoint, by split (``'val'``, ``'test'``).
        curve: AP at each validation in percent, by epoch or iteration.
        step_seconds: Time of the median iteration; None in results of version 0.1.
    """

    arm: str
    seed: int
    unit: str
    iterations: int
    train_seconds: float
    peak_memory: float
    device: str
    versions: dict[str, str]
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    curve: list[tuple[int, float]] = field(default_factory=list)
    step_seconds: float | None = None

    def write(self, path: Path) -> None:
        """Write the result to a file, atomically, one line per field."""
        AtomicLocalBackend().put_text(_as_json(asdict(self), 1) + '\n', str(path))

    @classmethod
    def read(cls, path: Path) -> 'CellResult':
        """Read a result from a file.

        Raises:
            ConfigError: if the file has another content.
        """
        try:
            return cls(**json.loads(path.read_text(encoding='utf-8')))
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f'{path} is not a result of compare ({error}); remove it to train the cell again'
            ) from error

    @property
    def median_seconds(self) -> float | None:
        """Median iteration times number of iterations: the training time without pauses."""
        return None if self.step_seconds is None else self.step_seconds * self.iterations

    def ap(self, split: str) -> dict[str, float]:
        """Collect AP, AP50 … of a split in percent; empty without an evaluation."""
        return standard_metrics(self.metrics.get(split, {}))


Results = Mapping[str, Mapping[int, CellResult]]
"""Results by arm and seed, the arms in the order of the tables."""


@dataclass
class ArmRecord:
    """An arm in the results.

    Attributes:
        cells: Results by seed.
        config: The arm's config with lists for tuples, as in JSON; None if it is unknown.
        step_times: If its schedule was stretched to another arm's training time, the step times of
            both, by arm; otherwise None.
    """

    cells: dict[int, CellResult] = field(default_factory=dict)
    config: dict[str, Any] | None = None
    step_times: dict[str, StepTimes] | None = None


@dataclass(frozen=True)
class ResultsFolder:
    """The folder with the results of a comparison.

    Finished cells are written below ``runs/``, beside their arm's config, so that several machines
    can share the folder. :meth:`pack` gathers everything in ``results.json``, the one file to keep.
    Both are read; ``runs/`` takes precedence.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def file(self) -> Path:
        """All results in one."""
        return self.path / 'results.json'

    @property
    def lock(self) -> Path:
        """Lock file of the machine that prepares or reports."""
        return self.path / '.lock'

    @property
    def runs(self) -> Path:
        """Folder of finished cells, with a subfolder for each arm."""
        return self.path / 'runs'

    def config_file(self, arm: str) -> Path:
        """Return the file of an arm's config."""
        return self.runs / arm / 'config.py'

    def step_times_file(self, arm: str) -> Path:
        """Return the file of the step times that set the length of an arm's schedule."""
        return self.runs / arm / 'step_times.json'

    def read(self, arms: Iterable[str] | None = None) -> dict[str, dict[int, CellResult]]:
        """Read the results, by arm and seed.

        Args:
            arms: The arms, in this order; None reads all, the baseline first.

        Raises:
            ConfigError: if a file is broken.
        """
        packed = self._read_file()[1]
        if arms is None:
            runs = {path.parent.name for path in self.runs.glob('*/seed_*.json')}
            arms = sorted({*packed, *runs}, key=_arm_order)
        results = {}
        for arm in arms:
            cells = dict(packed[arm].cells)
            for path in (self.runs / arm).glob('seed_*.json'):
                cell = CellResult.read(path)
                cells[cell.seed] = cell
            if cells:
                results[arm] = dict(sorted(cells.items()))
        return results

    def cells(self, arm: str) -> dict[int, CellResult]:
        """Read the results of an arm, by seed."""
        return self.read([arm]).get(arm, {})

    def config(self, arm: str) -> dict[str, Any] | None:
        """Read the config of an arm, with lists for tuples; None if it is unknown."""
        if self.config_file(arm).is_file():
            cfg = Config.fromfile(self.config_file(arm), import_custom_modules=False)
            return plain_config(cfg)
        return self._read_file()[1][arm].config

    def step_times(self, arm: str) -> dict[str, StepTimes] | None:
        """Read the step times that set the length of an arm's schedule; None without any."""
        if self.step_times_file(arm).is_file():
            return read_step_times(self.step_times_file(arm))
        return self._read_file()[1][arm].step_times

    def pack(self, command: str | None = None) -> None:
        """Gather all results in one file, written atomically.

        Args:
            command: The shell command that trained; None if nothing was trained.

        Raises:
            ConfigError: if a file is broken.
        """
        commands = [*self._read_file()[0], *([command] if command else [])]
        arms = {
            arm: ArmRecord(cells, self.config(arm), self.step_times(arm))
            for arm, cells in self.read().items()
        }
        content = {'commands': list(dict.fromkeys(commands)), 'arms': _encoded(arms)}
        AtomicLocalBackend().put_text(_as_json(content, DEPTH) + '\n', str(self.file))

    def _read_file(self) -> tuple[list[str], dict[str, ArmRecord]]:
        """Read commands and arms from ``results.json``; empty if it is not there."""
        if not self.file.is_file():
            return [], defaultdict(ArmRecord)
        try:
            content = json.loads(self.file.read_text(encoding='utf-8'))
            return list(content['commands']), defaultdict(ArmRecord, _decoded(content['arms']))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(
                f'{self.file} is not a results file of compare ({type(error).__name__}: {error}); '
                f'restore it, or remove it to use {self.runs} alone'
            ) from error


def plain_config(cfg: Config) -> dict[str, Any]:
    """Convert a config to JSON's types, with lists for tuples."""
    return json.loads(json.dumps(cfg.to_dict(), default=str))


def _encoded(arms: Mapping[str, ArmRecord]) -> dict[str, dict]:
    """Convert arms to JSON."""
    written, configs = {}, {}
    for name, arm in arms.items():
        entry = {}
        if arm.config is not None:
            entry |= _config_entry(arm.config, configs)
            configs[name] = arm.config
        if arm.step_times:
            entry['step_times'] = {k: asdict(v) for k, v in arm.step_times.items()}
        entry['seeds'] = {
            str(seed): {k: v for k, v in asdict(cell).items() if k not in ('arm', 'seed')}
            for seed, cell in arm.cells.items()
        }
        written[name] = entry
    return written


def _config_entry(config: dict[str, Any], others: Mapping[str, dict]) -> dict[str, Any]:
    """Encode a config whole, or as changes to another arm's, whichever is shorter."""
    entries = [{'config': config}]
    entries += [{'base': name, 'overrides': overrides(x, config)} for name, x in others.items()]
    return min(entries, key=lambda x: len(json.dumps(x)))


def _decoded(written: Mapping[str, dict]) -> dict[str, ArmRecord]:
    """Convert JSON from :func:`_encoded` back to arms."""
    arms: dict[str, ArmRecord] = {}
    for name, entry in written.items():
        config = entry.get('config')
        if 'base' in entry:
            config = overridden(arms[entry['base']].config, entry['overrides'])
        times = {k: StepTimes(**v) for k, v in entry.get('step_times', {}).items()}
        cells = {int(seed): CellResult(name, int(seed), **x) for seed, x in entry['seeds'].items()}
        arms[name] = ArmRecord(cells, config, times or None)
    return arms


def _as_json(content: Any, depth: int, indent: str = '') -> str:
    """Format JSON with a line for each key down to a depth, and deeper content on that line."""
    if depth == 0 or not content or not isinstance(content, dict):
        return json.dumps(content)
    inner = indent + ' '
    rows = [f'{inner}{json.dumps(k)}: {_as_json(v, depth - 1, inner)}' for k, v in content.items()]
    return '{\n' + ',\n'.join(rows) + f'\n{indent}}}'


def _arm_order(name: str) -> tuple:
    """Sort arms: baselines first, and the values of a sweep as numbers."""
    start, _, value = name.rpartition('=')
    try:
        number = float(value)
    except ValueError:
        start, number = name, 0.0
    return not name.startswith('baseline'), start, number
