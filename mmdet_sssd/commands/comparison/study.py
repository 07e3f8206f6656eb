"""A comparison from its command line to its report."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ...errors import ConfigError
from ..locks import locked
from .arms import BASELINE, Arm, arm_config, find_arm, read_definitions, read_roots, sweep_arms
from .cells import Cell, check_started, comparable_config, keep_arm_config
from .model_zoo import model_zoo_section
from .page import write_page
from .plots import draw_plots
from .progress import ProgressDisplay
from .report import comparison_report, write_numbers
from .results import Results, ResultsFolder
from .runs import CellRunner, Failure
from .schedule import length, stretched
from .summary import summarize_all
from .time_match import match_note, matched_step_times, time_ratio
from .training import VERSIONS, Training


@dataclass(frozen=True)
class StudyOptions:
    """The command line of ``compare``; see its help. ``command`` is that line itself."""

    config: str | None = None
    arms: list[str] | None = None
    arms_file: str | None = None
    seeds: list[int] = field(default_factory=lambda: list(range(5)))
    sweep: str | None = None
    sweep_arm: str = 'sssd'
    cfg_options: dict[str, Any] = field(default_factory=dict)
    work_dir: Path | None = None
    results: Path | None = None
    jobs: int | None = None
    executor: str = 'local'
    slurm_options: dict[str, Any] = field(default_factory=dict)
    keep_checkpoints: str = 'last'
    dry_run: bool = True
    split: str = 'val'
    report_only: bool = False
    model_zoo: bool = False
    examples: int = 4
    against: list[str] = field(default_factory=list)
    command: str | None = None


class Study:
    """Trains the cells of a comparison that are not there yet, and reports on all of it.

    Args:
        options: The command line.

    Raises:
        ConfigError: if the options do not go together, an arm is unknown, or there is nothing to
            report on.
    """

    def __init__(self, options: StudyOptions) -> None:
        self.options = options
        if options.config is None and not (options.report_only and not options.model_zoo):
            raise ConfigError(
                'CONFIG is missing; only --report-only without --model-zoo needs none'
            )
        if options.jobs is not None and options.jobs < 1:
            raise ConfigError(f'--jobs is {options.jobs}; accepted: 1 or more')
        if options.slurm_options and options.executor != 'slurm':
            raise ConfigError('--slurm-options are for --executor slurm; add that')
        if options.config is None and options.work_dir is None and options.results is None:
            raise ConfigError(
                '--report-only needs --results, --work-dir or the CONFIG that was run'
            )
        stem = Path(options.config or '').stem
        self.work_dir = options.work_dir or Path('work_dirs', f'compare_{stem}')
        self.results = ResultsFolder(options.results or self.work_dir / 'results')
        definitions = read_definitions(options.arms_file)
        self.arms = [find_arm(name, definitions) for name in self._arm_names()]
        if options.report_only and not self.results.read(self._reported()):
            raise ConfigError(
                f'there are no results in {self.results.path}; run compare without --report-only '
                'first, or give --work-dir or --results'
            )
        if missing := sorted(set(options.against) - set(self._reported())):
            raise ConfigError(
                f'--against: {", ".join(missing)} is not among the arms; accepted: '
                f'{", ".join(self._reported())}'
            )
        self.runner = CellRunner(
            self.work_dir / 'jobs',
            Training(options.split == 'test', options.keep_checkpoints == 'last'),
            options.slurm_options if options.executor == 'slurm' else None,
            options.jobs,
        )

    def run(self) -> list[Failure]:
        """Train what is missing, write the report and print it.

        Returns:
            What could not be trained.

        Raises:
            ConfigError: if an arm cannot be trained at all, or results are of another config.
        """
        failures = [] if self.options.report_only else self._train()
        with locked(self.results.lock):
            if results := self.results.read(self._reported()):
                self._report(results)
        for failure in failures:
            print(f'failed: {failure}')
        return failures

    def _arm_names(self) -> list[str]:
        names = self.options.arms
        if names is None and not self.options.report_only:
            names = [BASELINE] if self.options.sweep else [BASELINE, 'config']
        swept = sweep_arms(self.options.sweep, self.options.sweep_arm) if self.options.sweep else []
        return list(dict.fromkeys([*(names or []), *swept]))

    def _reported(self) -> list[str]:
        """Name the arms to report on: those asked for, and after training all that have results."""
        names = [arm.name for arm in self.arms]
        if names and self.options.report_only:
            return names
        return list(dict.fromkeys([*names, *self.results.read()]))

    def _train(self) -> list[Failure]:
        configs = self._configs()
        with locked(self.work_dir / '.lock', self.results.lock):
            self._check({arm.name: configs[arm.name] for arm in self.arms if not arm.match_time})
            for arm in [x for x in self.arms if x.match_time]:
                configs[arm.name] = self._matched(arm, configs)
        if missing := self._count_missing():
            self._note_versions()
        with ProgressDisplay(missing) as progress:
            progress.lengths = {name: length(cfg) for name, cfg in configs.items()}
            return self.runner.run(self._all_cells(configs), progress.update)

    def _configs(self) -> dict[str, Config]:
        """Make the configs of the arms."""
        self.roots = read_roots(self.options.config, self.options.cfg_options)
        if self.options.split == 'test':
            _check_test_data(self.roots['student'])
        names = [arm.name for arm in self.arms]
        for arm in self.arms:
            if arm.match_time and not set(arm.match_time) & set(names):
                raise ConfigError(
                    f'arm {arm.name} takes as much training time as {" or ".join(arm.match_time)}, '
                    'and --arms has none; add one'
                )
        configs = {arm.name: self._config(arm) for arm in self.arms}
        for arm in [x for x in self.arms if x.match_time]:
            stretched(configs[arm.name], 1)  # refuses what it cannot stretch
        return configs

    def _config(self, arm: Arm) -> Config:
        return comparable_config(arm_config(arm, self.roots, self.options.cfg_options))

    def _cells(self, arm: str) -> list[Cell]:
        return [Cell(arm, seed, self.work_dir, self.results) for seed in self.options.seeds]

    def _check(self, configs: dict[str, Config]) -> None:
        """Refuse, before anything is trained, what could not be."""
        for name, cfg in configs.items():
            self._keep(name, cfg)
        if not self.options.dry_run:
            return
        for name, cfg in configs.items():
            cells = self._cells(name)
            if not any(cell.checkpoint or cell.result for cell in cells):
                print(f'dry run of {name}', flush=True)
                with _naming(name, cells[0].log):
                    self.runner.dry_run(cells[0], cfg)

    def _keep(self, arm: str, cfg: Config) -> None:
        """Keep an arm's config, or make sure that its cells were begun with this one."""
        keep_arm_config(self.results, arm, cfg)
        for cell in self._cells(arm):
            check_started(cell, cfg)

    def _matched(self, arm: Arm, configs: dict[str, Config]) -> Config:
        """Stretch an arm's schedule to the training time of another."""
        reference = next(name for name in arm.match_time if name in configs)
        pair = {name: configs[name] for name in (arm.name, reference)}
        folder = self.work_dir / arm.name / 'step_times'
        with _naming(arm.name, folder / 'output.log'):
            times = matched_step_times(self.runner.measure, pair, folder, self.results)
        factor = time_ratio(pair, times)
        cfg = stretched(configs[arm.name], factor)
        cfg.stretch = factor
        self._keep(arm.name, cfg)
        return cfg

    def _all_cells(self, configs: dict[str, Config]) -> list[tuple[Cell, Config]]:
        """List the cells seed by seed, so that there are pairs early."""
        rows = [self._cells(name) for name in configs]
        return [(cell, configs[cell.arm]) for seed in zip(*rows, strict=True) for cell in seed]

    def _count_missing(self) -> int:
        cells = [cell for arm in self.arms for cell in self._cells(arm.name)]
        return sum(not self.runner.training.is_done(cell) for cell in cells)

    def _note_versions(self) -> None:
        """Say which results came from other versions than the new ones will."""
        arms = self.results.read(arm.name for arm in self.arms).values()
        found = {_name_versions(cell.versions) for cells in arms for cell in cells.values()}
        present = _name_versions(VERSIONS)
        for other in sorted(found - {present}):
            print(f'note: {self.results.path} has results of {other}; this is {present}')

    def _report(self, results: Results) -> None:
        self.results.pack(None if self.options.report_only else self.options.command)
        summaries = summarize_all(results, self.options.against)
        write_numbers(self.results.path, results, summaries)
        report = comparison_report(results, summaries)
        times = [self.results.step_times(arm) for arm in results]
        report.remarks = [match_note(x) for x in times if x]
        if self.options.model_zoo:
            report.sections.append(model_zoo_section(self.options.config))
        print(report.write(self.results.path / 'report.md'))
        plots = draw_plots(self.results.path, results)
        for path in plots:
            print(f'drawn: {path}')
        page = write_page(
            report, self.results, results, plots, self.work_dir, self.options.examples
        )
        print(f'page: {page}')


def _name_versions(versions: dict[str, str]) -> str:
    return ', '.join(f'{name} {version}' for name, version in versions.items())


@contextmanager
def _naming(arm: str, log: Path) -> Iterator[None]:
    """Name the arm and its log in errors."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f'arm {arm}: {error} (log: {log})') from error


def _check_test_data(cfg: Config) -> None:
    """Make sure that there are test data, and other than the validation data."""
    for part in ('dataloader', 'evaluator', 'cfg'):
        if f'test_{part}' not in cfg:
            raise ConfigError(f'--split test needs test_{part} in the config; there is none')
    if cfg.test_dataloader.dataset == cfg.val_dataloader.dataset:
        raise ConfigError(
            '--split test: test_dataloader.dataset of the config is the validation data; set its '
            'ann_file and data_prefix, and test_evaluator.ann_file, to data that is neither; in '
            'configs for your own data by SSSD_TEST_ANN and SSSD_TEST_IMG'
        )
