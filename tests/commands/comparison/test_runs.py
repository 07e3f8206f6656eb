"""Cells are trained once, apart, resumed, and stopped; with a process that only pretends to train."""

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer

from mmdet_sssd import ConfigError
from mmdet_sssd.commands.comparison import runs
from mmdet_sssd.commands.comparison.cells import Cell, check_started, keep_arm_config
from mmdet_sssd.commands.comparison.report import write_report
from mmdet_sssd.commands.comparison.results import CellResult, ResultsFolder
from mmdet_sssd.commands.comparison.runs import CellRunner, slot_environments
from mmdet_sssd.commands.comparison.study import in_use

FAKE_TOOLS = Path(__file__).with_name('fake_tools')


class Comparison:
    """An arm with some seeds, and the calls that were made for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ap = 0.6
        self.results = ResultsFolder(folder / 'results')
        self.fake = dict(
            calls=str(folder / 'calls'),
            checkpoint=str(folder / 'checkpoint'),
            **{x: [] for x in ('crash', 'kill', 'hang', 'unvalidated')},
        )
        history = HistoryBuffer([1.0, 2.0, 4.0, 1.5], [1] * 4)
        scalars = {'train/time': history, 'train/peak_memory': history}
        hub = dict(log_scalars=scalars, runtime_info=dict(device='a GPU'))
        content = dict(meta=dict(iter=4), message_hub=hub)
        torch.save(content, self.fake['checkpoint'])

    @property
    def config(self):
        loops = dict(train_cfg=dict(max_epochs=2), val_cfg=dict(), test_cfg=dict())
        data = dict(val_dataloader=dict(), test_dataloader=dict())
        evaluators = dict(val_evaluator=dict(ap=0.7), test_evaluator=dict(ap=self.ap))
        return Config(dict(fake=self.fake, **loops, **data, **evaluators))

    def cell(self, seed) -> Cell:
        return Cell('arm', seed, self.folder / 'work', self.results)

    def run(self, *seeds, on_change=lambda *_: None, **options):
        runner = CellRunner(tools=FAKE_TOOLS, **options)
        return runner.run([(self.cell(seed), self.config) for seed in seeds], on_change)

    @property
    def calls(self) -> list[str]:
        path = Path(self.fake['calls'])
        return path.read_text().splitlines() if path.exists() else []

    def result(self, seed) -> CellResult:
        return CellResult.read(self.cell(seed).result_file)


@pytest.fixture
def comparison(tmp_path):
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


def test_stopping_stops_what_runs_and_starts_nothing_more(comparison):
    comparison.fake['hang'] = [0]
    pid = comparison.folder / 'pid'

    def interrupt(*_):
        if pid.exists():
            raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        comparison.run(0, 1, 2, on_change=interrupt)
    assert time.monotonic() - started < 30
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert comparison.calls == ['arm 0']


def test_a_program_error_is_raised_even_before_the_first_look(comparison, monkeypatch):
    class Prompt(ThreadPoolExecutor):
        def submit(self, *args):
            task = super().submit(*args)
            wait([task])
            return task

    def broken(*_):
        raise RuntimeError('a bug')

    monkeypatch.setattr(runs, 'ThreadPoolExecutor', Prompt)
    monkeypatch.setattr(CellRunner, '_run_cell', broken)
    with pytest.raises(RuntimeError, match='a bug'):
        comparison.run(0, 1)


def test_several_at_a_time(comparison):
    seen = []
    comparison.fake['hang'] = [0]
    deadline = time.monotonic() + 30

    def watch(running, finished, failures):
        seen.append((len(running), len(finished)))
        if len(finished) == 2 or time.monotonic() > deadline:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        comparison.run(0, 1, 2, jobs=2, on_change=watch)
    assert seen[-1][1] == 2  # the others were finished while the first one hung
    assert {comparison.result(seed).seed for seed in (1, 2)} == {1, 2}


def test_jobs_share_gpus_in_turn_or_cores(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    assert [x['CUDA_VISIBLE_DEVICES'] for x in slot_environments(3)] == ['0', '1', '0']
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '5,7')
    assert [x['CUDA_VISIBLE_DEVICES'] for x in slot_environments(2)] == ['5', '7']
    assert slot_environments(1) == [{}]
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(os, 'cpu_count', lambda: 8)
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    assert slot_environments(2) == [{'OMP_NUM_THREADS': '4'}] * 2


def test_results_of_another_config_are_not_mixed_in(comparison):
    cfg, results = comparison.config, comparison.results
    keep_arm_config(results, 'arm', cfg)
    comparison.run(0)
    keep_arm_config(results, 'arm', cfg)
    other = comparison.config
    other.train_cfg.max_epochs = 3
    with pytest.raises(
        ConfigError, match=r'arm arm has results in .* from another config: train_cfg\.max_epochs\.'
    ):
        keep_arm_config(results, 'arm', other)
    tested = comparison.config
    tested.test_evaluator.ap = 0.5
    keep_arm_config(results, 'arm', tested)  # nothing was tested so far
    comparison.run(0, test=True)
    with pytest.raises(ConfigError, match=r': test_evaluator\.ap\. Give another'):
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
        ConfigError, match=r'from another config: train_cfg\.max_epochs\..*results\.json'
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
        ConfigError, match=r'arm seed 0 was begun with another config: train_cfg\.max'
    ):
        check_started(comparison.cell(0), other)


def test_a_broken_result_is_named(comparison):
    comparison.run(0)
    comparison.cell(0).result_file.write_text('{"arm": 1')
    with pytest.raises(ConfigError, match=r'seed_0\.json is no result of compare .* remove it'):
        comparison.result(0)


def test_a_work_directory_is_used_by_one_at_a_time(tmp_path):
    refused = pytest.raises(ConfigError, match='is in use by another compare')
    with in_use(tmp_path), refused, in_use(tmp_path):
        pass
    with in_use(tmp_path):
        pass
