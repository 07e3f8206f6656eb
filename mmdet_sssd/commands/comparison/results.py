"""The results of a comparison: one file with all that its runs measured."""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ...config_tree import overridden, overrides
from ...errors import ConfigError
from ...runs import AtomicLocalBackend
from ..locks import locked
from .metrics import standard_metrics

DEPTH = 4  # of keys with a line of their own in the file, such as a config's keys and seeds


@dataclass
class RunResult:
    """The result of a run.

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
        step_seconds: Time of the median iteration; None where it was not noted.
        teacher_leads: What a ``DistillPhasesHook`` with ``teacher_must_lead`` found; None without it.
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
    teacher_leads: bool | None = None

    @property
    def median_seconds(self) -> float | None:
        """Median iteration times number of iterations: the training time without pauses."""
        return None if self.step_seconds is None else self.step_seconds * self.iterations

    def ap(self, split: str) -> dict[str, float]:
        """Collect AP, AP50 … of a split in percent; empty without an evaluation."""
        return standard_metrics(self.metrics.get(split, {}))


Results = Mapping[str, Mapping[int, RunResult]]
"""Results by arm and seed, the arms in the order of the tables."""


@dataclass
class ArmRecord:
    """What is known of an arm: results by seed, and the config, in JSON's types (None: unknown)."""

    runs: dict[int, RunResult] = field(default_factory=dict)
    config: dict[str, Any] | None = None


@dataclass(frozen=True)
class ResultsFolder:
    """The folder with the results of a comparison, in ``results.json``, and its reports.

    Several processes, on several machines, may add to it.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def file(self) -> Path:
        """The file with all results."""
        return self.path / 'results.json'

    def read(self, arms: Collection[str] | None = None) -> dict[str, dict[int, RunResult]]:
        """Read the results by arm and seed, of ``arms`` or of all, the baselines first as in the file.

        Raises:
            ConfigError: if the file is broken.
        """
        known = self.records()[1].items()
        return {name: x.runs for name, x in known if x.runs and (arms is None or name in arms)}

    def arm(self, name: str) -> ArmRecord:
        """Read what is known of an arm; nothing of an unknown one."""
        return self.records()[1].get(name, ArmRecord())

    def add(
        self,
        *results: RunResult,
        configs: Mapping[str, Config] | None = None,
        command: str | None = None,
    ) -> None:
        """Add to the file what is new, or replace what is there."""
        with locked(self.path / '.write.lock'):
            commands, arms = self.records()
            for result in results:
                arms.setdefault(result.arm, ArmRecord()).runs[result.seed] = result
            for arm, cfg in (configs or {}).items():
                arms.setdefault(arm, ArmRecord()).config = plain_config(cfg)
            commands += [command] if command and command not in commands else []
            content = {'commands': commands, 'arms': _encoded(arms)}
            AtomicLocalBackend().put_text(_as_json(content, DEPTH) + '\n', str(self.file))

    def records(self) -> tuple[list[str], dict[str, ArmRecord]]:
        """Read the commands that trained, and what is known of each arm."""
        if not self.file.is_file():
            return [], {}
        try:
            content = json.loads(self.file.read_text(encoding='utf-8'))
            return list(content['commands']), _decoded(content['arms'])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(
                f'{self.file} is not a results file of compare ({type(error).__name__}: {error}); '
                'restore it, or remove it to train all of it again'
            ) from error


def plain_config(cfg: Config) -> dict[str, Any]:
    """Convert a config to JSON's types, with lists for tuples."""
    return json.loads(json.dumps(cfg.to_dict(), default=str))


def _encoded(arms: Mapping[str, ArmRecord]) -> dict[str, dict]:
    """Convert arms to JSON, baselines first; only the first config is whole, for changes to it."""
    written, base = {}, None
    for name, arm in sorted(arms.items(), key=lambda item: not item[0].startswith('baseline')):
        entry = written[name] = {}
        if arm.config is not None and base is None:
            base, entry['config'] = name, arm.config
        elif arm.config is not None:
            entry.update(base=base, overrides=overrides(arms[base].config, arm.config))
        entry['seeds'] = {
            str(seed): {k: v for k, v in asdict(run).items() if k not in ('arm', 'seed')}
            for seed, run in sorted(arm.runs.items())
        }
    return written


def _decoded(written: Mapping[str, dict]) -> dict[str, ArmRecord]:
    """Convert JSON from :func:`_encoded` back to arms."""
    arms: dict[str, ArmRecord] = {}
    for name, entry in written.items():
        config = entry.get('config')
        if 'base' in entry:
            config = overridden(arms[entry['base']].config, entry['overrides'])
        runs = {int(seed): RunResult(name, int(seed), **x) for seed, x in entry['seeds'].items()}
        arms[name] = ArmRecord(runs, config)
    return arms


def _as_json(content: Any, depth: int, indent: str = '') -> str:
    """Format JSON with a line for each key down to a depth, and deeper content on that line."""
    if depth == 0 or not content or not isinstance(content, dict):
        return json.dumps(content)
    inner = indent + ' '
    rows = [f'{inner}{json.dumps(k)}: {_as_json(v, depth - 1, inner)}' for k, v in content.items()]
    return '{\n' + ',\n'.join(rows) + f'\n{indent}}}'
