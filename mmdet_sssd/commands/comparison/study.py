"""A comparison from its command line to its report: arms × seeds → runs → results → report."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ...errors import ConfigError
from ..locks import locked
from .arms import BASELINE, arm_config, find_arm, read_definitions, read_roots
from .jobs import Failure, JobRunner
from .plots import draw_plots
from .progress import Progress
from .report import comparison_report, write_csv
from .results import Results, ResultsFolder
from .runs import Run, comparable_config, keep_config
from .summary import summarize_all
from .training import Training


@dataclass(frozen=True)
class StudyOptions:
    """The command line of ``compare``; see its help. ``command`` is that line itself."""

    config: str | None = None
    arms: list[str] | None = None
    arms_file: str | None = None
    seeds: list[int] = field(default_factory=lambda: list(range(5)))
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
    against: list[str] = field(default_factory=list)
    command: str | None = None

    def __post_init__(self) -> None:
        """Refuse options that do not go together.

        Raises:
            ConfigError: if there are such.
        """
        if self.config is None and not self.report_only:
            raise ConfigError('CONFIG is missing; only --report-only needs none')
        if self.jobs is not None and self.jobs < 1:
            raise ConfigError(f'--jobs is {self.jobs}; accepted: 1 or more')
        if self.slurm_options and self.executor != 'slurm':
            raise ConfigError('--slurm-options are for --executor slurm; add that')
        if not (self.config or self.work_dir or self.results):
            raise ConfigError(
                '--report-only needs --results, --work-dir or the CONFIG that was run'
            )


class Study:
    """Trains the runs of a comparison that are not there yet, and reports on all of it.

    Raises:
        ConfigError: if an arm is unknown, or there is nothing to report on.
    """

    def __init__(self, options: StudyOptions) -> None:
        self.options = options
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
        self.jobs = JobRunner(
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
        if names is None:
            names = [] if self.options.report_only else [BASELINE, 'config']
        return list(dict.fromkeys(names))

    def _reported(self) -> list[str]:
        """Name the arms to report on: those asked for, and after training all that have results."""
        names = [arm.name for arm in self.arms]
        if names and self.options.report_only:
            return names
        return list(dict.fromkeys([*names, *self.results.read()]))

    def _train(self) -> list[Failure]:
        configs = self._configs()
        with locked(self.work_dir / '.lock', self.results.lock):
            for arm, cfg in configs.items():
                keep_config(self.results, arm, cfg, self._runs(arm))
            if self.options.dry_run:
                self._rehearse(configs)
        by_seed = zip(*(self._runs(arm) for arm in configs), strict=True)  # for pairs early
        runs = {
            run: configs[run.arm]
            for run in chain.from_iterable(by_seed)
            if not self.jobs.training.is_done(run)
        }
        return self.jobs.train(runs, Progress(len(runs)).update)

    def _configs(self) -> dict[str, Config]:
        """Make the configs of the arms."""
        roots = read_roots(self.options.config, self.options.cfg_options)
        if self.options.split == 'test':
            _check_test_data(roots['student'])
        return {
            arm.name: comparable_config(arm_config(arm, roots, self.options.cfg_options))
            for arm in self.arms
        }

    def _runs(self, arm: str) -> list[Run]:
        return [Run(arm, seed, self.work_dir, self.results) for seed in self.options.seeds]

    def _rehearse(self, configs: Mapping[str, Config]) -> None:
        """Find, before anything is trained, what could not be."""
        for arm, cfg in configs.items():
            runs = self._runs(arm)
            if any(run.checkpoint or run.result for run in runs):
                continue
            print(f'dry run of {arm}', flush=True)
            try:
                self.jobs.wait_for(partial(self.jobs.training.rehearse, runs[0], cfg))
            except ConfigError as error:
                raise ConfigError(f'arm {arm}: {error} (log: {runs[0].log})') from error

    def _report(self, results: Results) -> None:
        if self.options.command and not self.options.report_only:
            self.results.add(command=self.options.command)
        write_csv(self.results.path / 'report.csv', results)
        report = comparison_report(results, summarize_all(results, self.options.against))
        print(report.write(self.results.path / 'report.md'))
        for path in draw_plots(self.results.path, results):
            print(f'drawn: {path}')


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
