"""Work is done in jobs, stopped and requeued; with tools that only pretend to train."""

import os
import signal
import sys
import time

import pytest
import torch
from submitit.core.utils import FailedJobError, UncompletedJobError

from mmdet_sssd import ConfigError
from mmdet_sssd.commands.comparison import jobs
from mmdet_sssd.commands.comparison.jobs import JobRunner, Work, slot_environments
from mmdet_sssd.commands.comparison.programs import Preempted
from mmdet_sssd.commands.comparison.slurm import QueueWatcher

from ...command import write_program
from .synthetic import DoneJob


@pytest.mark.slow
def test_stopping_stops_what_runs_and_starts_nothing(comparison, monkeypatch):
    """Two at a time, while a third one waits; the second has been finished."""
    comparison.fake['hang'] = [0, 2]
    sleep = time.sleep

    def interrupt(seconds):
        sleep(seconds)
        if len(comparison.pids) == 2:
            monkeypatch.setattr(jobs.time, 'sleep', sleep)
            raise KeyboardInterrupt

    monkeypatch.setattr(jobs.time, 'sleep', interrupt)
    with pytest.raises(KeyboardInterrupt):
        comparison.train(0, 1, 2, 3, jobs=2, in_jobs=True)
    assert [seed for seed in range(4) if comparison.run(seed).result] == [1]
    assert sorted(comparison.calls) == ['arm 0', 'arm 1', 'arm 2']
    for pid in comparison.pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.slow
def test_a_program_error_is_raised_with_its_traceback(comparison):
    run = comparison.run(0)
    with pytest.raises(FailedJobError, match=r'ZeroDivisionError'):
        JobRunner(comparison.folder / 'jobs').do('x', {run: lambda: 1 / 0})


def test_a_lost_job_is_a_failure(comparison, monkeypatch):
    monkeypatch.setattr(DoneJob, 'exception', lambda _: UncompletedJobError('no result'))
    comparison.fake['crash'] = [0]
    (failure,) = comparison.train(0)
    assert failure.reason.startswith('its job 7 was ended from outside')


def test_a_reason_with_brackets_is_printed_as_it_is(comparison, monkeypatch, capsys):
    monkeypatch.setattr(jobs, '_outcome', lambda job: 'no such folder among [/data/a, /data/b]')
    (failure,) = comparison.train(0)
    assert 'among [/data/a, /data/b]' in capsys.readouterr().out
    assert failure.reason.endswith('[/data/a, /data/b]')


def test_what_starts_and_ends_is_printed(comparison, capsys):
    comparison.fake['crash'] = [1]
    comparison.train(0, 1)
    lines = [line.split('] ')[-1].strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[:4] == [
        'arm seed 0: job 7',
        'arm seed 0: done',
        'arm seed 1: job 7',
        'arm seed 1: failed, there is no annotation file',
    ]


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


def test_work_has_its_environment(monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0')
    seen = []
    work = Work(
        lambda: seen.append(os.environ['CUDA_VISIBLE_DEVICES']), {'CUDA_VISIBLE_DEVICES': '1'}
    )
    assert work() is None
    assert seen == ['1']


@pytest.mark.parametrize('by', [signal.SIGUSR2, None])
def test_a_preempted_job_is_queued_again(monkeypatch, by):
    def do():
        raise Preempted(by)

    raised = []
    monkeypatch.setattr(signal, 'raise_signal', lambda x: raised.append(x) or sys.exit(-1))
    work = Work(do, {})
    with pytest.raises(SystemExit):
        work()
    assert raised == [signal.SIGUSR2]
    assert work.checkpoint().function is work


@pytest.mark.slow
def test_a_preempted_run_goes_on_in_the_same_job(comparison):
    comparison.fake['preempt'] = [0]
    assert comparison.train(0, in_jobs=True) == []
    assert comparison.calls == ['arm 0', 'arm 0 --resume']
    (log,) = (comparison.folder / 'jobs').glob('*_log.out')
    assert log.read_text().count('Requeued job') == 1


def test_slurm_has_to_be_there(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(ConfigError, match='found no sbatch'):
        JobRunner(tmp_path, slurm={})


def test_options_of_sbatch_are_passed_on(tmp_path, monkeypatch):
    folder = tmp_path / 'bin'
    folder.mkdir()
    for name in ('sbatch', 'srun'):
        program = f'#!/bin/sh\ncp $1 {tmp_path}/job.sh\necho no such QOS >&2\nexit 1'
        write_program(folder / name, program)
    monkeypatch.setenv('PATH', str(folder), prepend=os.pathsep)
    options = dict(partition='gpu', time=240, gpus_per_node=1, reservation='mine')
    with pytest.raises(ConfigError, match=r'^--slurm: no such QOS$'):
        JobRunner(tmp_path / 'jobs', options).do('x', {'a run': lambda: None})
    lines = set((tmp_path / 'job.sh').read_text().splitlines())
    assert {f'#SBATCH --{x}' for x in ('partition=gpu', 'time=240', 'reservation=mine')} <= lines
    assert '#SBATCH --gpus-per-node=1' in lines


def test_jobs_that_left_the_queue_have_ended(tmp_path, monkeypatch):
    """By Slurm's queue alone, as on a cluster without accounting."""
    write_program(tmp_path / 'squeue', '#!/bin/sh\nprintf "7_1\\n8\\n"')
    monkeypatch.setenv('PATH', str(tmp_path), prepend=os.pathsep)
    watcher = QueueWatcher()
    for job in ('7_0', '7_1', '8', '9'):
        watcher.register_job(job)
    assert [watcher.is_done(job) for job in ('7_0', '7_1', '8', '9')] == [True, False, False, True]
