"""Results without a training run, and training runs that are only pretended."""

from functools import partial
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from submitit.core.utils import JobPaths

from mmdet_sssd.commands.comparison.jobs import JobRunner
from mmdet_sssd.commands.comparison.results import ResultsFolder, RunResult
from mmdet_sssd.commands.comparison.runs import Run
from mmdet_sssd.commands.comparison.training import Training

FAKE_TOOLS = Path(__file__).with_name('fake_tools')


def result(arm, seed, ap, *, seconds=60.0, step=None, memory=500.0, splits=('val',), **sizes):
    """A result whose metrics are given in percent, as CocoMetric names them."""
    metrics = {
        'coco/bbox_mAP': ap / 100,
        'coco/bbox_mAP_50': (ap + 30) / 100,
        **{f'coco/bbox_mAP_{size}': value for size, value in sizes.items()},
    }
    return RunResult(
        arm=arm,
        seed=seed,
        unit='epoch',
        iterations=100,
        train_seconds=seconds,
        peak_memory=memory,
        device='CPU',
        versions={},
        metrics=dict.fromkeys(splits, metrics),
        curve=[(1, ap / 2), (2, ap)],
        step_seconds=step,
    )


def results(**aps):
    """Results of arms by name, seeds from 0."""
    return {
        arm: {seed: result(arm, seed, ap) for seed, ap in enumerate(values)}
        for arm, values in aps.items()
    }


def folder_of(path, found, **more) -> ResultsFolder:
    """A folder with results."""
    folder = ResultsFolder(path)
    folder.add(*(run for runs in found.values() for run in runs.values()), **more)
    return folder


class DoneJob:
    """Has the interface of submitit's jobs, and is done as soon as it is submitted."""

    job_id = '7'

    def __init__(self, folder: Path, work) -> None:
        self.paths = JobPaths(folder, 'done')
        self.outcome = work()

    def done(self):
        return True

    def exception(self):
        return None

    def result(self):
        return self.outcome


class Comparison:
    """An arm with some seeds, and the calls of the fake tools that were made for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ap = 0.6
        self.results = ResultsFolder(folder / 'results')
        self.fake = dict(
            calls=str(folder / 'calls'),
            checkpoint=str(folder / 'checkpoint'),
            **{x: [] for x in ('crash', 'kill', 'preempt', 'hang', 'unvalidated')},
        )
        history = HistoryBuffer([1.0, 2.0, 4.0, 1.5], [1] * 4)
        scalars = {'train/time': history, 'train/peak_memory': history}
        info = dict(device='a GPU', teacher_leads=False)
        hub = dict(log_scalars=scalars, runtime_info=info)
        torch.save(dict(meta=dict(iter=4), message_hub=hub), self.fake['checkpoint'])

    @property
    def config(self):
        loops = dict(train_cfg=dict(max_epochs=2), val_cfg=dict(type='ValLoop'), test_cfg=dict())
        data = dict(val_dataloader=dict(), test_dataloader=dict())
        evaluators = dict(val_evaluator=dict(ap=0.7), test_evaluator=dict(ap=self.ap))
        return Config(dict(fake=self.fake, **loops, **data, **evaluators))

    def run(self, seed) -> Run:
        return Run('arm', seed, self.folder / 'work', self.results)

    def train(self, *seeds, jobs=None, in_jobs=False, **options):
        """Train seeds that are not done, in this process or in jobs."""
        runner = JobRunner(self.folder / 'jobs', jobs=jobs)
        if not in_jobs:
            runner._submit = lambda works: [DoneJob(self.folder, work) for work in works]
        training = Training(tools=FAKE_TOOLS, **options)
        runs = [run for run in map(self.run, seeds) if not training.is_done(run)]
        return runner.do(
            'training', {run: partial(training.train, run, self.config) for run in runs}
        )

    @property
    def calls(self) -> list[str]:
        path = Path(self.fake['calls'])
        return path.read_text().splitlines() if path.exists() else []

    @property
    def pids(self) -> list[int]:
        """Of the programs that hang."""
        return [int(path.name) for path in self.folder.glob('pids/*')]
