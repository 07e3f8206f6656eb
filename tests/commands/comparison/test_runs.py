"""Cells are trained once, apart, resumed, and stopped; with a process that only pretends to train.

Jobs are done at once and in this process, but for the tests of jobs.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import submitit
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from submitit.core.utils import FailedJobError, JobPaths

from mmdet_sssd import ConfigError
from mmdet_sssd.commands.comparison import training
from mmdet_sssd.commands.comparison.cells import Cell, check_started, keep_arm_config
from mmdet_sssd.commands.comparison.results import CellResult, ResultsFolder
from mmdet_sssd.commands.comparison.runs import CellRunner, slot_environments
from mmdet_sssd.commands.comparison.slurm import QueueWatcher
from mmdet_sssd.commands.comparison.training import Job, Preempted, Training, run_program
from mmdet_sssd.commands.locks import locked

from .synthetic import write_report

FAKE_TOOLS = Path(__file__).with_name('fake_tools')
ROOT = Path(__file__).parents[3]


class DoneJob:
    """Has the interface of submitit's jobs, and is done as soon as it is submitted."""

    def __init__(self, folder: Path, work) -> None:
        self.paths = JobPaths(folder, 'done')
        self.outcome = Job(work)()

    def done(self):
        return True

    def exception(self):
        return None

    def result(self):
        return self.outcome


class Comparison:
    """An arm with some seeds, and the calls that were made for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ap = 0.6
        self.results = ResultsFolder(folder / 'results')
        self.fake = dict(
            calls=str(folder / 'calls'),
            checkpoint=str(folder / 'checkpoint'),
            **{x: [] for x in ('crash', 'kill', 'kill_parent', 'preempt', 'hang', 'unvalidated')},
        )
        history = HistoryBuffer([1.0, 2.0, 4.0, 1.5], [1] * 4)
        scalars = {'train/time': history, 'train/peak_memory': history}
        hub = dict(log_scalars=scalars, runtime_info=dict(device='a GPU'))
        content = dict(meta=dict(iter=4), message_hub=hub)
        torch.save(content, self.fake['checkpoint'])

    @property
    def config(self):
        loops = dict(train_cfg=dict(max_epochs=2), val_cfg=dict(type='ValLoop'), test_cfg=dict())
        data = dict(val_dataloader=dict(), test_dataloader=dict())
        evaluators = dict(val_evaluator=dict(ap=0.7), test_evaluator=dict(ap=self.ap))
        return Config(dict(fake=self.fake, **loops, **data, **evaluators))

    def cell(self, seed) -> Cell:
        return Cell('arm', seed, self.folder / 'work', self.results)

    def runner(self, jobs=None, **training) -> CellRunner:
        return CellRunner(self.folder / 'jobs', Training(tools=FAKE_TOOLS, **training), jobs=jobs)

    def run(self, *seeds, on_change=lambda *_: None, in_jobs=False, **options):
        runner = self.runner(**options)
        if not in_jobs:
            runner._submit = lambda works: [DoneJob(self.folder, work) for work in works]
        return runner.run([(self.cell(seed), self.config) for seed in seeds], on_change)

    @property
    def calls(self) -> list[str]:
        path = Path(self.fake['calls'])
        return path.read_text().splitlines() if path.exists() else []

    @property
    def pids(self) -> list[int]:
        """Of the programs that hang."""
        return [int(path.name) for path in self.folder.glob('pids/*')]

    def result(self, seed) -> CellResult:
        return CellResult.read(self.cell(seed).result_file)


@pytest.fixture
def comparison(tmp_path, monkeypatch):
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    return Comparison(tmp_path)


def test_what_a_run_leaves_is_its_result(comparison):
    assert comparison.run(1) == []
    result = comparison.result(1)
    assert result.ap('val') == pytest.approx({'AP': 40})
    assert result.curve == [[1, pytest.approx(20)], [2, pytest.approx(40)]]
    assert result.metrics['val'] == {'coco/bbox_mAP': 0.4, 'coco/cat_precision': 0.3}
    assert (result.train_seconds, result.peak_memory, result.iterations) == (8.5, 4.0, 4)
    assert (result.step_seconds, result.median_seconds) == (1.75, 7.0)
    assert result.device == 'a GPU'
    assert comparison.cell(1).checkpoint.name == 'epoch_2.pth'


def test_finished_cells_are_kept(comparison):
    comparison.run(0, 1)
    written = comparison.cell(0).result_file.stat().st_mtime_ns
    comparison.run(0, 1, 2)
    assert comparison.calls == ['arm 0', 'arm 1', 'arm 2']
    assert comparison.cell(0).result_file.stat().st_mtime_ns == written


def test_a_crash_is_reported_and_the_others_go_on(comparison):
    comparison.fake['crash'] = [0]
    (failure,) = comparison.run(0, 1)
    log = comparison.cell(0).log
    assert str(failure) == f'arm seed 0: there is no annotation file (log: {log})'
    assert log.read_text().startswith('training\n')
    assert comparison.result(1).seed == 1
    comparison.fake['crash'] = []
    assert comparison.run(0, 1) == []
    assert comparison.calls == ['arm 0', 'arm 1', 'arm 0']  # it had no checkpoint to resume from


def test_a_killed_run_is_resumed(comparison):
    comparison.fake['kill'] = [0]
    (failure,) = comparison.run(0)
    assert failure.reason == 'train was killed by signal 9'
    assert not comparison.cell(0).result_file.exists()
    assert comparison.run(0) == []
    assert comparison.calls == ['arm 0', 'arm 0 --resume']
    assert [step for step, _ in comparison.result(0).curve] == [1, 2]  # the cut line is left out


def test_a_run_that_was_not_validated_at_its_end_is_evaluated(comparison):
    comparison.fake['unvalidated'] = [0]
    comparison.run(0)
    assert comparison.calls == ['arm 0', 'test 0 epoch_2.pth']
    assert comparison.result(0).metrics == {'val': {'coco/bbox_mAP': 0.7}}


def test_the_test_data_can_be_added_later(comparison):
    comparison.run(0)
    comparison.run(0, test=True)
    comparison.run(0, test=True)
    assert comparison.calls == ['arm 0', 'test 0 epoch_2.pth']
    assert comparison.result(0).ap('test') == pytest.approx({'AP': 60})
    assert comparison.result(0).ap('val') == pytest.approx({'AP': 20})


def test_a_detector_that_finds_nothing_is_a_failure_of_its_own(comparison):
    comparison.ap = None
    (failure,) = comparison.run(0, test=True)
    assert failure.reason.startswith('its last checkpoint finds nothing on the test data')
    assert comparison.result(0).ap('val') == pytest.approx({'AP': 20})


def test_checkpoints_can_be_removed_when_all_is_evaluated(comparison):
    comparison.run(0, test=True, keep_checkpoints=False)
    assert comparison.result(0).ap('test') == pytest.approx({'AP': 60})
    assert not list(comparison.cell(0).folder.glob('*.pth'))
    comparison.run(1, keep_checkpoints=False)
    (failure,) = comparison.run(1, test=True)
    assert failure.reason.startswith('its checkpoint is gone, so it cannot be tested; remove ')


@pytest.mark.slow
def test_stopping_stops_what_runs_and_starts_nothing_more(comparison):
    """Two at a time, while a third one waits; the second has been finished."""
    comparison.fake['hang'] = [0, 2]

    def interrupt(running, finished, failures):
        if len(comparison.pids) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        comparison.run(0, 1, 2, 3, jobs=2, on_change=interrupt, in_jobs=True)
    assert [seed for seed in range(4) if comparison.cell(seed).result] == [1]
    assert comparison.calls[:2] in (['arm 0', 'arm 1'], ['arm 1', 'arm 0'])
    assert comparison.calls[2:] == ['arm 2']
    for pid in comparison.pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert all(comparison.cell(seed).is_free() for seed in range(4))


@pytest.mark.slow
def test_a_program_error_is_raised_with_its_traceback(comparison):
    cell = (comparison.cell(0), 'no config')
    with pytest.raises(FailedJobError, match=r"AttributeError: 'str' object has no attribute"):
        comparison.runner().run([cell], lambda *_: None)


def test_a_job_that_is_gone_is_a_failure_of_its_own(comparison, monkeypatch):
    monkeypatch.setattr(submitit.LocalJob, '_results_timeout_s', 0)
    comparison.fake['kill_parent'] = [0]
    (failure,) = comparison.run(0, in_jobs=True)
    assert re.match(
        r'its job \d+ was ended from outside; what it printed: .*_log\.out', failure.reason
    )
    assert not comparison.cell(0).result


def test_jobs_share_gpus_in_turn_or_cores(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    assert [x['CUDA_VISIBLE_DEVICES'] for x in slot_environments(3)] == ['0', '1', '0']
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '5,7')
    assert [x['CUDA_VISIBLE_DEVICES'] for x in slot_environments(2)] == ['5', '7']
    assert slot_environments(1) == [{'CUDA_VISIBLE_DEVICES': '5'}]
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(os, 'cpu_count', lambda: 8)
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    assert slot_environments(2) == [{'OMP_NUM_THREADS': '4'}] * 2
    assert slot_environments(1) == [{}]


def test_results_of_another_config_are_not_mixed_in(comparison):
    cfg, results = comparison.config, comparison.results
    keep_arm_config(results, 'arm', cfg)
    comparison.run(0)
    keep_arm_config(results, 'arm', cfg)
    other = comparison.config
    other.train_cfg.max_epochs = 3
    with pytest.raises(
        ConfigError, match=r'results of arm arm from another config; it differs in train_cfg\.max_'
    ):
        keep_arm_config(results, 'arm', other)
    tested = comparison.config
    tested.test_evaluator.ap = 0.5
    keep_arm_config(results, 'arm', tested)  # nothing was tested so far
    comparison.run(0, test=True)
    with pytest.raises(ConfigError, match=r' test_evaluator\.ap\. Use another'):
        keep_arm_config(results, 'arm', cfg)


def test_what_was_packed_is_gone_on_with(comparison):
    cfg, results = comparison.config, comparison.results
    keep_arm_config(results, 'arm', cfg)
    comparison.run(0)
    results.pack('compare --seeds 1')
    shutil.rmtree(results.runs)

    other = comparison.config
    other.train_cfg.max_epochs = 3
    with pytest.raises(
        ConfigError,
        match=r'from another config; it differs in train_cfg\.max_epochs\..*results\.json',
    ):
        keep_arm_config(results, 'arm', other)
    keep_arm_config(results, 'arm', cfg)
    assert comparison.run(0, 1) == []
    assert comparison.calls == ['arm 0', 'arm 1']
    assert not comparison.cell(0).result_file.exists()
    assert '| arm | 2 | 30.0 ±' in write_report(results.path, results.read())

    comparison.run(0, test=True)  # its checkpoint is still there
    assert results.cells('arm')[0].ap('test') == pytest.approx({'AP': 60})
    results.pack('compare --seeds 2')
    shutil.rmtree(results.runs)
    assert [list(x.metrics) for x in results.cells('arm').values()] == [['val', 'test'], ['val']]


def test_a_run_does_not_go_on_with_another_config(comparison):
    comparison.fake['kill'] = [0]
    comparison.run(0)
    check_started(comparison.cell(0), comparison.config)
    other = comparison.config
    other.train_cfg.max_epochs = 3
    with pytest.raises(
        ConfigError,
        match=r'arm seed 0 was started with another config; it differs in train_cfg\.max',
    ):
        check_started(comparison.cell(0), other)


def test_a_broken_result_is_named(comparison):
    comparison.run(0)
    comparison.cell(0).result_file.write_text('{"arm": 1')
    with pytest.raises(ConfigError, match=r'seed_0\.json is not a result of compare .* remove it'):
        comparison.result(0)


def test_a_cell_that_others_train_is_waited_for(comparison):
    """They share the results; the cells that are free are trained meanwhile."""
    seen = []
    theirs = replace(comparison.cell(0), work_dir=comparison.folder / 'theirs')
    with ExitStack() as others:
        assert others.enter_context(theirs.claimed())

        def watch(running, finished, failures):
            seen.append([cell.seed for cell in finished])
            if seen[-1] == [1] and len(seen) > 3:
                replace(comparison.result(1), seed=0).write(theirs.result_file)
                others.close()

        assert comparison.run(0, 1, on_change=watch) == []
    assert comparison.calls == ['arm 1']
    assert seen[-1] == [1, 0]


def test_two_at_once_train_each_cell_once(comparison):
    """As two machines do that share the folders; each packs all results in the end."""

    def take_part() -> None:
        assert comparison.run(*range(6)) == []
        with locked(comparison.results.lock):
            comparison.results.pack(f'compare {os.getpid()}')

    both = [get_context('fork').Process(target=take_part) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert sorted(comparison.calls) == [f'arm {seed}' for seed in range(6)]
    packed = json.loads(comparison.results.file.read_text())
    assert len(packed['commands']) == 2
    assert list(packed['arms']['arm']['seeds']) == [str(seed) for seed in range(6)]


def test_a_cell_that_others_left_is_trained(comparison):
    with ExitStack() as others:
        assert others.enter_context(comparison.cell(0).claimed())
        assert comparison.run(0, on_change=lambda *_: others.close()) == []
    assert comparison.calls == ['arm 0']


def test_a_claim_lasts_as_long_as_the_program_that_trains(comparison, tmp_path):
    """Though the job that started it is gone."""
    cell = comparison.cell(0)
    with cell.claimed() as is_ours:
        assert is_ours
        sleep = [sys.executable, '-c', 'import time; time.sleep(60)']
        program = subprocess.Popen(sleep, close_fds=False)
        with cell.claimed(wait=0) as is_ours_again:
            assert not is_ours_again
    assert not cell.is_free()
    program.kill()
    program.wait()
    assert cell.is_free()


def test_two_that_wait_for_a_lock_have_it_one_after_the_other(tmp_path):
    """Also when the same file is named twice."""
    with locked(tmp_path / 'a', tmp_path / 'b', tmp_path / 'a') as first:
        assert first
        with locked(tmp_path / 'b', wait=0.3) as second:
            assert not second
    with locked(tmp_path / 'b', wait=0) as second:
        assert second


PROGRAM = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit({code}))
signal.signal(signal.SIGUSR2, lambda *_: sys.exit({code}))
os.kill({target}, signal.{name})
for _ in range(600):
    time.sleep(0.1)
"""


@pytest.mark.parametrize('code', [75, 0, 1])
@pytest.mark.parametrize('name', ['SIGTERM', 'SIGUSR2'])
def test_a_program_gets_the_signals_of_its_job(tmp_path, name, code):
    """A run that ends is preempted then, whatever it says: it goes on, if only to find out."""
    text = PROGRAM.format(code=code, target=os.getpid(), name=name)
    before = [signal.getsignal(x) for x in (signal.SIGTERM, signal.SIGUSR2)]
    with pytest.raises(Preempted) as preempted:
        run_program('train', ['-c', text], tmp_path / 'log', {})
    assert preempted.value.by == getattr(signal, name)
    assert [signal.getsignal(x) for x in (signal.SIGTERM, signal.SIGUSR2)] == before


def test_a_program_that_got_a_signal_itself_is_preempted_too(tmp_path):
    text = PROGRAM.format(code=75, target='os.getpid()', name='SIGTERM')
    with pytest.raises(Preempted) as preempted:
        run_program('train', ['-c', text], tmp_path / 'log', {})
    assert preempted.value.by is None


def test_a_program_that_does_not_end_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(training, 'GRACE', 0.5)
    text = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range(600):
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(0.1)
"""
    started = time.monotonic()
    with pytest.raises(Preempted):
        run_program('train', ['-c', text], tmp_path / 'log', {})
    assert time.monotonic() - started < 30


@pytest.mark.parametrize('by', [signal.SIGUSR2, None])
def test_a_preempted_job_is_queued_again(monkeypatch, by):
    def work():
        raise Preempted(by)

    raised = []
    monkeypatch.setattr(signal, 'raise_signal', lambda x: raised.append(x) or sys.exit(-1))
    with pytest.raises(SystemExit):
        Job(work)()
    assert raised == [signal.SIGUSR2]
    assert Job(work).checkpoint().function.work is work


@pytest.mark.slow
def test_a_preempted_run_goes_on_in_the_same_job(comparison):
    comparison.fake['preempt'] = [0]
    assert comparison.run(0, in_jobs=True) == []
    assert comparison.calls == ['arm 0', 'arm 0 --resume']
    (log,) = (comparison.folder / 'jobs').glob('*_log.out')
    assert log.read_text().count('Requeued job') == 1


@pytest.mark.skipif(bool(shutil.which('sbatch')), reason='there is a Slurm')
def test_slurm_has_to_be_there(tmp_path):
    with pytest.raises(ConfigError, match='--executor slurm: found no sbatch on this machine'):
        CellRunner(tmp_path, Training(), slurm={})


def test_options_of_sbatch_are_handed_on(tmp_path, monkeypatch):
    folder = tmp_path / 'bin'
    folder.mkdir()
    for name in ('sbatch', 'srun'):
        (folder / name).write_text(
            f'#!/bin/sh\ncp $1 {tmp_path}/job.sh\necho no such QOS >&2\nexit 1'
        )
        (folder / name).chmod(0o755)
    monkeypatch.setenv('PATH', f'{folder}:{os.environ["PATH"]}')
    options = dict(partition='gpu', time=240, gpus_per_node=1, reservation='mine')
    runner = CellRunner(tmp_path / 'jobs', Training(), options)
    with pytest.raises(ConfigError, match=r'^--executor slurm: no such QOS$'):
        runner._submit([lambda: None])
    lines = set((tmp_path / 'job.sh').read_text().splitlines())
    assert {f'#SBATCH --{x}' for x in ('partition=gpu', 'time=240', 'reservation=mine')} <= lines
    assert '#SBATCH --gpus-per-node=1' in lines


def test_jobs_that_left_the_queue_have_ended(tmp_path, monkeypatch):
    """By Slurm's queue alone, as on a cluster without accounting."""
    (tmp_path / 'squeue').write_text('#!/bin/sh\nprintf "7_1\\n8\\n"')
    (tmp_path / 'squeue').chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
    watcher = QueueWatcher()
    for job in ('7_0', '7_1', '8', '9'):
        watcher.register_job(job)
    assert [watcher.is_done(job) for job in ('7_0', '7_1', '8', '9')] == [True, False, False, True]
