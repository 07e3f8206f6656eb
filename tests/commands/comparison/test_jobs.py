"""Runs are trained once, apart, stopped and requeued; with tools that only pretend to train."""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing import get_context

import pytest
import torch
from submitit.core.utils import FailedJobError, UncompletedJobError

from mmdet_sssd import ConfigError
from mmdet_sssd.commands.comparison.jobs import JobRunner, Work, slot_environments
from mmdet_sssd.commands.comparison.programs import Preempted
from mmdet_sssd.commands.comparison.slurm import QueueWatcher
from mmdet_sssd.commands.comparison.training import Training

from .synthetic import DoneJob


@pytest.mark.slow
def test_stopping_stops_what_runs_and_starts_nothing(comparison):
    """Two at a time, while a third one waits; the second has been finished."""
    comparison.fake['hang'] = [0, 2]

    def interrupt(running, finished, failures):
        if len(comparison.pids) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        comparison.train(0, 1, 2, 3, jobs=2, on_change=interrupt, in_jobs=True)
    assert [seed for seed in range(4) if comparison.run(seed).result] == [1]
    assert comparison.calls[:2] in (['arm 0', 'arm 1'], ['arm 1', 'arm 0'])
    assert comparison.calls[2:] == ['arm 2']
    for pid in comparison.pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert all(comparison.run(seed).is_free() for seed in range(4))


@pytest.mark.slow
def test_a_program_error_is_raised_with_its_traceback(comparison):
    with pytest.raises(FailedJobError, match=r"AttributeError: 'str' object has no attribute"):
        comparison.runner().train({comparison.run(0): 'no config'}, lambda *_: None)


def test_a_lost_job_is_a_failure(comparison, monkeypatch):
    monkeypatch.setattr(DoneJob, 'exception', lambda _: UncompletedJobError('no result'))
    comparison.fake['crash'] = [0]
    (failure,) = comparison.train(0)
    assert failure.reason.startswith('its job 7 was ended from outside')


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


def test_a_run_that_others_train_is_waited_for(comparison):
    """They share the results; the runs that are free are trained meanwhile."""
    seen = []
    theirs = replace(comparison.run(0), work_dir=comparison.folder / 'theirs')
    with ExitStack() as others:
        assert others.enter_context(theirs.claimed())

        def watch(running, finished, failures):
            seen.append([run.seed for run in finished])
            if seen[-1] == [1] and len(seen) > 2:
                comparison.results.add(replace(comparison.run(1).result, seed=0))
                others.close()

        assert comparison.train(0, 1, on_change=watch) == []
    assert comparison.calls == ['arm 1']
    assert seen[-1] == [1, 0]


def test_two_at_once_train_each_run_once(comparison):
    """As two machines do that share the folders."""

    def take_part() -> None:
        assert comparison.train(*range(4)) == []
        comparison.results.add(command=f'compare {os.getpid()}')

    both = [get_context('fork').Process(target=take_part) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert sorted(comparison.calls) == [f'arm {seed}' for seed in range(4)]
    commands, arms = comparison.results.records()
    assert (len(commands), list(arms['arm'].runs)) == (2, [0, 1, 2, 3])


def test_a_run_that_others_left_is_trained(comparison):
    with ExitStack() as others:
        assert others.enter_context(comparison.run(0).claimed())
        assert comparison.train(0, on_change=lambda *_: others.close()) == []
    assert comparison.calls == ['arm 0']


def test_a_claim_lasts_as_long_as_its_program(comparison):
    """Though the job that started it is gone."""
    run = comparison.run(0)
    with run.claimed() as is_ours:
        assert is_ours
        sleep = [sys.executable, '-c', 'import time; time.sleep(60)']
        program = subprocess.Popen(sleep, close_fds=False)
        with run.claimed(wait=0) as is_ours_again:
            assert not is_ours_again
    assert not run.is_free()
    program.kill()
    program.wait()
    assert run.is_free()


@pytest.mark.parametrize('by', [signal.SIGUSR2, None])
def test_a_preempted_job_is_queued_again(monkeypatch, by):
    def do():
        raise Preempted(by)

    raised = []
    monkeypatch.setattr(signal, 'raise_signal', lambda x: raised.append(x) or sys.exit(-1))
    with pytest.raises(SystemExit):
        Work(do)()
    assert raised == [signal.SIGUSR2]
    assert Work(do).checkpoint().function.do is do


@pytest.mark.slow
def test_a_preempted_run_goes_on_in_the_same_job(comparison):
    comparison.fake['preempt'] = [0]
    assert comparison.train(0, in_jobs=True) == []
    assert comparison.calls == ['arm 0', 'arm 0 --resume']
    (log,) = (comparison.folder / 'jobs').glob('*_log.out')
    assert log.read_text().count('Requeued job') == 1


@pytest.mark.skipif(bool(shutil.which('sbatch')), reason='there is a Slurm')
def test_slurm_has_to_be_there(tmp_path):
    with pytest.raises(ConfigError, match='found no sbatch'):
        JobRunner(tmp_path, Training(), slurm={})


def test_options_of_sbatch_are_passed_on(tmp_path, monkeypatch):
    folder = tmp_path / 'bin'
    folder.mkdir()
    for name in ('sbatch', 'srun'):
        (folder / name).write_text(
            f'#!/bin/sh\ncp $1 {tmp_path}/job.sh\necho no such QOS >&2\nexit 1'
        )
        (folder / name).chmod(0o755)
    monkeypatch.setenv('PATH', f'{folder}:{os.environ["PATH"]}')
    options = dict(partition='gpu', time=240, gpus_per_node=1, reservation='mine')
    runner = JobRunner(tmp_path / 'jobs', Training(), options)
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
