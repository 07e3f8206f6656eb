"""Training on more than one process, each with a part of the batch."""

import pytest
import torch

from ..toy_detector import ITERS_PER_EPOCH
from .work import (
    chosen_to_resume,
    gradients,
    run_phases,
    synced_statistics,
    train_on_counts,
    train_on_pseudo_boxes,
)


@pytest.mark.parametrize('name', ['retinanet', 'fcos', 'faster_rcnn', 'mask_rcnn'])
def test_every_parameter_gets_a_gradient_with_objects_on_any_rank_or_none(name, on_two_processes):
    counts = [(0, 2), (2, 0), (0, 0), (2, 2)]
    first, second = zip(*counts, strict=True)
    assert on_two_processes(train_on_counts, (name, first), (name, second)) == [[], []]


@pytest.mark.parametrize('name', ['retinanet', 'fcos'])  # FCOS averages over processes in its head
def test_pseudo_boxes_may_be_on_any_rank_or_none(name, on_two_processes):
    first, second = (0.0, 1.0, 1.0, 0.0), (1.0, 0.0, 1.0, 0.0)  # least scores
    results = on_two_processes(train_on_pseudo_boxes, (name, first), (name, second))
    for thresholds, (without, counts) in zip((first, second), results, strict=True):
        assert without == []
        assert [count > 0 for count in counts] == [x < 1 for x in (*thresholds, 1.0)]


@pytest.mark.parametrize(('name', 'with_terms'), [('fcos', False), ('atss', False), ('fcos', True)])
def test_gradients_of_two_processes_are_those_of_the_joined_batch(
    name, with_terms, on_two_processes
):
    """Of detectors, and terms, that average over all processes' objects."""
    expected = gradients(name, [0, 1], with_terms)
    alone = gradients(name, [0], with_terms)
    for ours in on_two_processes(gradients, (name, [0], with_terms), (name, [1], with_terms)):
        assert ours.keys() == expected.keys()
        for key, grad in expected.items():
            error = (ours[key] - grad).norm()  # not 0: the heads' normalisers are float32
            assert error <= 1e-6 * grad.norm() + 1e-12, key
    assert not torch.allclose(alone['adapter.convs.0.weight'], expected['adapter.convs.0.weight'])


@pytest.mark.parametrize('distill', [False, True])
def test_statistics_are_averaged_before_validation(distill, on_two_processes):
    results = on_two_processes(synced_statistics, (distill,), (distill,))
    (first, _), (second, _) = results
    running = [name for name in first if 'running' in name]
    assert len(running) > 20
    for _, after in results:
        for name in running:
            torch.testing.assert_close(after[name], (first[name] + second[name]) / 2, msg=name)


def rows(first_epoch, iters_per_epoch):
    """What run_phases has to give, from an epoch on."""
    return [
        (epoch, 4.0 if epoch >= 4 else 2.0, epoch < 3, epoch >= 2)
        for epoch in range(first_epoch, 6)
        for _ in range(iters_per_epoch)
    ]


@pytest.fixture(scope='module')
def whole_runs(on_two_processes, tmp_path_factory):
    """The folders of a run on two processes and of one on a single process, and their rows."""
    two, one = (tmp_path_factory.mktemp(name) for name in ('two', 'one'))
    return two, on_two_processes(run_phases, (two,), (two,)), one, run_phases(one)


def test_phases_and_distill_coef_are_the_same_on_all_processes(whole_runs):
    _, of_ranks, _, alone = whole_runs
    assert alone == rows(0, ITERS_PER_EPOCH)
    assert of_ranks == [rows(0, ITERS_PER_EPOCH // 2)] * 2


def test_phases_stay_where_they_were_when_two_processes_become_one(whole_runs, tmp_path):
    two, *_ = whole_runs
    assert run_phases(tmp_path, str(two / 'epoch_1.pth')) == rows(1, ITERS_PER_EPOCH)


def test_phases_stay_where_they_were_when_one_process_becomes_two(
    whole_runs, on_two_processes, tmp_path
):
    args = (tmp_path, str(whole_runs[2] / 'epoch_1.pth'))
    assert on_two_processes(run_phases, args, args) == [rows(1, ITERS_PER_EPOCH // 2)] * 2


def test_all_processes_resume_from_what_the_first_one_finds(on_two_processes, tmp_path):
    """Also where folders differ, as on disks of their own or while files come in over a network."""
    folders = tmp_path / 'first', tmp_path / 'second'
    for epoch, folder in enumerate(folders, 1):
        folder.mkdir()
        torch.save({}, folder / f'epoch_{epoch}.pth')
    args = [(str(folder),) for folder in folders]
    assert on_two_processes(chosen_to_resume, *args) == [str(folders[0] / 'epoch_1.pth')] * 2
    (folders[0] / 'epoch_1.pth').write_bytes(b'PK')
    first, second = on_two_processes(chosen_to_resume, *args)
    assert first == second
    assert f'there is no whole checkpoint in {folders[0]}' in first
    (folders[0] / 'epoch_1.pth').unlink()
    assert on_two_processes(chosen_to_resume, *args) == [None, None]
