"""A comparison from its options to its report: arms × seeds → runs → results → report."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ...checks.annotations import check_annotations
from ...datasets import evaluator_configs
from ...errors import ConfigError
from ...runs import AtomicLocalBackend
from .arms import BASELINE, arm_config, find_arm, read_definitions, read_roots
from .jobs import Failure, JobRunner
from .plots import draw_plots
from .report import comparison_report, csv_report
from .results import Results, ResultsFolder
from .runs import Run, check_known, comparable_config, keep_config
from .training import Training


@dataclass
class Study:
    """Trains the runs of a comparison that are not there yet, and reports on all of it.

    The arguments are the options of ``compare``, see its help, and the command line.

    Raises:
        ConfigError: if options do not go together, an arm is unknown, or there is nothing to report on.
    """

    config: str | None = None
    arms: list[str] | None = None
    arms_file: str | None = None
    seeds: list[int] = field(default_factory=lambda: list(range(5)))
    cfg_options: dict[str, Any] = field(default_factory=dict)
    work_dir: Path | None = None
    results: Path | None = None
    jobs: int | None = None
    slurm: dict[str, Any] | None = None
    keep_checkpoints: str = 'last'
    dry_run: bool = True
    split: str = 'val'
    report_only: bool = False
    against: list[str] = field(default_factory=list)
    command: str | None = None

    def __post_init__(self) -> None:
        if self.config is None and not self.report_only:
            raise ConfigError('CONFIG is missing; only --report-only needs none')
        if not (self.config or self.work_dir or self.results):
            raise ConfigError(
                '--report-only needs --results, --work-dir or the CONFIG that was run'
            )
        stem = Path(self.config or '').stem
        self.work_dir = self.work_dir or Path('work_dirs', f'compare_{stem}')
        self.folder = ResultsFolder(self.results or self.work_dir / 'results')
        if self.arms is None:
            self.arms = [] if self.report_only else [BASELINE, 'config']
        self.arms = list(dict.fromkeys(self.arms))
        if self.report_only:
            self._check_results()
        else:
            definitions = read_definitions(self.arms_file)
            self.found_arms = [find_arm(name, definitions) for name in self.arms]
        known = list(dict.fromkeys([*self.arms, *self._results()]))
        if missing := sorted(set(self.against) - set(known)):
            raise ConfigError(
                f'--against: {", ".join(missing)} is not among the arms; accepted: '
                f'{", ".join(known)}'
            )
        self.training = Training(self.split == 'test', self.keep_checkpoints == 'last')

    def _check_results(self) -> None:
        found = self.folder.read(None)
        if not found:
            raise ConfigError(
                f'there are no results in {self.folder.path}; run compare without --report-only '
                'first, or give --work-dir or --results'
            )
        if missing := sorted(set(self.arms) - set(found)):
            raise ConfigError(
                f'--arms: {", ".join(missing)} has no results in {self.folder.path}; accepted: '
                f'{", ".join(found)}'
            )

    def run(self) -> list[Failure]:
        """Train what is missing, write the report and print it.

        Returns:
            What could not be trained.

        Raises:
            ConfigError: if an arm cannot be trained at all, or results are of another config.
        """
        failures = [] if self.report_only else self._train()
        if results := self._results():
            self._report(results)
        for failure in failures:
            print(f'failed: {failure}')
        return failures

    def _results(self) -> Results:
        """Read what to report on: the arms asked for, and after training all that have results."""
        return self.folder.read(self.arms if self.arms and self.report_only else None)

    def _train(self) -> list[Failure]:
        jobs = JobRunner(self.work_dir / 'jobs', self.slurm, self.jobs)
        configs = self._configs()
        for arm, cfg in configs.items():
            keep_config(self.folder, arm, cfg, self._runs(arm))
        if self.dry_run:
            self._rehearse(jobs, configs)
        by_seed = zip(*(self._runs(arm) for arm in configs), strict=True)  # for pairs early
        missing = [x for x in chain.from_iterable(by_seed) if not self.training.is_done(x)]
        return jobs.do(
            'training',
            {run: partial(self.training.train, run, configs[run.arm]) for run in missing},
        )

    def _configs(self) -> dict[str, Config]:
        """Make the configs of the arms."""
        roots = read_roots(self.config, self.cfg_options)
        if self.split == 'test':
            _check_test_data(roots[BASELINE])
        # arms that are added are of the same detector, data and schedule
        check_known(self.folder, BASELINE, comparable_config(roots[BASELINE]))
        return {
            arm.name: comparable_config(arm_config(arm, roots, self.cfg_options))
            for arm in self.found_arms
        }

    def _runs(self, arm: str) -> list[Run]:
        return [Run(arm, seed, self.work_dir, self.folder) for seed in self.seeds]

    def _rehearse(self, jobs: JobRunner, configs: Mapping[str, Config]) -> None:
        """Find, before anything is trained, what could not be."""
        rehearsals = {}
        for arm, cfg in configs.items():
            first, *others = self._runs(arm)
            if not any(run.checkpoint or run.result for run in (first, *others)):
                rehearsals[first] = partial(self.training.rehearse, first, cfg)
        for failure in jobs.do('dry runs', rehearsals):
            raise ConfigError(f'dry run of {failure}')

    def _report(self, results: Results) -> None:
        if self.command and not self.report_only:
            self.folder.add(command=self.command)
        text = comparison_report(results, self.against)
        for name, content in (('report.csv', csv_report(results)), ('report.md', text)):
            AtomicLocalBackend().put_text(content, str(self.folder.path / name))
        print(text)
        for path in draw_plots(self.folder.path, results):
            print(f'drawn: {path}')


def _check_test_data(cfg: Config) -> None:
    """Check the test data before runs take their time: that they exist, and are not validated on."""
    for part in ('dataloader', 'evaluator', 'cfg'):
        if f'test_{part}' not in cfg:
            raise ConfigError(f'--split test needs test_{part} in the config; there is none')
    if cfg.test_dataloader.dataset == cfg.val_dataloader.dataset:
        raise ConfigError(
            '--split test: test_dataloader.dataset of the config is the validation data; set its '
            'ann_file and data_prefix, and test_evaluator.ann_file, to data that is neither; in '
            'configs for your own data by SSSD_TEST_ANN and SSSD_TEST_IMG'
        )
    if any(x.get('format_only') for _, x in evaluator_configs(cfg, 'test_evaluator')):
        raise ConfigError('--split test: test_evaluator.format_only is True, which computes no AP')
    check_annotations(cfg, ('test',))
