"""What a run leaves, what becomes of one that fails; with tools that only pretend to train."""

import pytest


def test_a_run_leaves_its_result(comparison):
    assert comparison.train(1) == []
    result = comparison.run(1).result
    assert result.ap('val') == pytest.approx({'AP': 40})
    assert result.curve == [[1, pytest.approx(20)], [2, pytest.approx(40)]]
    assert result.metrics['val'] == {'coco/bbox_mAP': 0.4, 'coco/cat_precision': 0.3}
    assert (result.train_seconds, result.peak_memory, result.iterations) == (8.5, 4.0, 4)
    assert (result.step_seconds, result.median_seconds) == (1.75, 7.0)
    assert result.device == 'a GPU'
    assert result.teacher_leads is False
    assert comparison.run(1).checkpoint.name == 'epoch_2.pth'


def test_finished_runs_are_kept(comparison):
    comparison.train(0, 1)
    comparison.train(0, 1, 2)
    assert comparison.calls == ['arm 0', 'arm 1', 'arm 2']


def test_a_crash_is_reported_and_the_others_go_on(comparison):
    comparison.fake['crash'] = [0]
    (failure,) = comparison.train(0, 1)
    assert failure.reason == 'there is no annotation file'
    assert comparison.run(0).log.read_text().startswith('training\n')
    assert comparison.run(1).result
    comparison.fake['crash'] = []
    assert comparison.train(0, 1) == []
    assert comparison.calls == ['arm 0', 'arm 1', 'arm 0']  # it had no checkpoint to resume from


def test_a_killed_run_is_resumed(comparison):
    comparison.fake['kill'] = [0]
    (failure,) = comparison.train(0)
    assert failure.reason == 'train was killed by signal 9'
    assert not comparison.run(0).result
    assert comparison.train(0) == []
    assert comparison.calls == ['arm 0', 'arm 0 --resume']
    assert [step for step, _ in comparison.run(0).result.curve] == [1, 2]  # without the cut line


def test_a_run_without_a_last_validation_is_evaluated(comparison):
    comparison.fake['unvalidated'] = [0]
    comparison.train(0)
    assert comparison.calls == ['arm 0', 'test 0 epoch_2.pth']
    assert comparison.run(0).result.metrics == {'val': {'coco/bbox_mAP': 0.7}}


def test_test_data_can_be_added_later(comparison):
    comparison.train(0)
    comparison.train(0, test=True)
    comparison.train(0, test=True)
    assert comparison.calls == ['arm 0', 'test 0 epoch_2.pth']
    assert comparison.run(0).result.ap('test') == pytest.approx({'AP': 60})
    assert comparison.run(0).result.ap('val') == pytest.approx({'AP': 20})


def test_a_detector_that_finds_nothing_fails(comparison):
    comparison.ap = None
    (failure,) = comparison.train(0, test=True)
    assert 'finds nothing on the test data' in failure.reason
    assert comparison.run(0).result.ap('val') == pytest.approx({'AP': 20})


def test_checkpoints_can_be_removed_after_evaluation(comparison):
    comparison.train(0, test=True, keep_checkpoints=False)
    assert comparison.run(0).result.ap('test') == pytest.approx({'AP': 60})
    assert not list(comparison.run(0).folder.glob('*.pth'))
    comparison.train(1, keep_checkpoints=False)
    (failure,) = comparison.train(1, test=True)
    assert 'there is no checkpoint' in failure.reason
