"""Training on more than one process, each with a part of the batch."""

import gc
import math
import signal

import pytest
import torch
from mmdet.registry import MODELS
from torch import distributed

from mmdet_sssd.runs import load_from_local

from ..distillers import TOY, assert_equal
from ..runs.stock_runs import assert_equal_runs, last_checkpoint
from ..toy_detector import ITERS_PER_EPOCH
from .work import (
    chosen_to_resume,
    gradients,
    run_balanced,
    run_leading,
    run_phases,
    run_taught,
    run_until,
    run_until_signal,
    semi_step,
    train_on_counts,
    train_on_pseudo_boxes,
)

SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    'name',
    ['retinanet', 'faster_rcnn', *(pytest.param(x, marks=SLOW) for x in ('fcos', 'mask_rcnn'))],
)
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


BRANCHES = {  # which images each process has: with labels, without
    'one has none without labels': [([0], [0]), ([1], [])],
    'one has none with labels': [([0], [0]), ([], [1])],
    'each has one branch': [([0, 1], []), ([], [0, 1])],
    'none has any without labels': [([0], []), ([1], [])],
}


@pytest.mark.parametrize('case', BRANCHES)
def test_a_branch_may_lack_on_a_process(case, on_two_processes):
    """Of FCOS, whose losses average over processes: the step is that of the joined batch."""
    parts = BRANCHES[case]
    joined = ([*parts[0][k], *parts[1][k]] for k in (0, 1))
    losses, grads, weights = semi_step('fcos', *joined)
    assert any(key.startswith('unsup.') for key in losses) == ('any without' not in case)
    results = on_two_processes(semi_step, *(('fcos', *part) for part in parts))
    for ours, ours_grads, ours_weights in results:
        assert ours.keys() == losses.keys()
        assert ours_weights.keys() == weights.keys()
        for key, grad in grads.items():
            error = (ours_grads[key] - grad).norm()
            assert error <= 1e-4 * grad.norm() + 1e-7, key
    for key, value in losses.items():
        mean = sum(ours[key] for ours, *_ in results) / 2
        torch.testing.assert_close(mean, value, rtol=1e-4, atol=1e-6, msg=key)
    assert_equal(results[0][2], results[1][2])


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
    adapter = 'terms.distill.adapter.convs.0.weight'
    assert not torch.allclose(alone[adapter], expected[adapter])


def rows(first_epoch, iters_per_epoch):
    """What run_phases has to give, from an epoch on."""
    return [
        (epoch, 4.0 if epoch >= 4 else 2.0, epoch < 3, epoch >= 2)
        for epoch in range(first_epoch, 6)
        for _ in range(iters_per_epoch)
    ]


def test_phases_and_distill_coef_are_the_same_on_however_many_processes(on_two_processes, tmp_path):
    two = tmp_path / 'two'
    assert on_two_processes(run_phases, (two,), (two,)) == [rows(0, ITERS_PER_EPOCH // 2)] * 2
    assert run_phases(tmp_path / 'one', str(two / 'epoch_1.pth')) == rows(1, ITERS_PER_EPOCH)


def test_a_ratio_of_gradients_is_that_of_the_squares_averaged_over_processes(
    on_two_processes, tmp_path
):
    (coefs, first), (others, second) = on_two_processes(run_balanced, *[(str(tmp_path),)] * 2)
    assert coefs == others
    student, term = (math.hypot(first[0][k], second[0][k]) for k in (0, 1))
    assert first[0] != pytest.approx(second[0], rel=1e-3)
    assert coefs == pytest.approx([2.0] + [0.5 * student / term] * 2, rel=1e-5)


def test_a_pretrained_teacher_is_not_trained(on_two_processes, tmp_path):
    """DDP is not told to look for unused parameters: it would end the run at the second step."""
    torch.manual_seed(7)
    teacher, checkpoint = MODELS.build(TOY).state_dict(), str(tmp_path / 'teacher.pth')
    torch.save(dict(state_dict=teacher), checkpoint)
    first, second = on_two_processes(run_taught, *[(str(tmp_path), checkpoint)] * 2)
    assert_equal(first, second)
    assert_equal(first['teacher'], dict(teacher))
    saved = load_from_local(str(tmp_path / 'epoch_2.pth'))
    for key in ('state_dict', 'ema_state_dict'):
        names = {name.removeprefix('module.') for name in saved[key]} - {'steps'}
        assert {name.partition('.')[0] for name in names} == {'student'}


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


def test_a_restart_that_one_node_counts_is_one_of_all(on_two_processes, tmp_path):
    """torchrun's agents count the deaths of their own processes."""
    torch.save({}, tmp_path / 'epoch_1.pth')
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_1.pth'))
    args = [(str(tmp_path), False, restarts) for restarts in '01']
    assert on_two_processes(chosen_to_resume, *args) == [str(tmp_path / 'epoch_1.pth')] * 2


def test_a_group_of_one_does_not_wait_for_a_stopped_teacher(tmp_path, monkeypatch):
    """DDP wraps the model wherever there is a launcher."""
    monkeypatch.setenv('LOCAL_RANK', '0')
    distributed.init_process_group('gloo', store=distributed.HashStore(), rank=0, world_size=1)
    try:
        result = run_until(str(tmp_path), 0.5)
    finally:
        gc.collect()  # DDP's wrapper, which keeps the group: freed in a forked worker, it would hang
        distributed.destroy_process_group()
    assert result['moved'] == [True] * 6 + [False] * 6


def test_processes_do_not_wait_for_a_stopped_teacher(on_two_processes, tmp_path):
    """DDP is not told to look for unused parameters, and nothing moves what has stopped."""
    whole = on_two_processes(run_until, *[(str(tmp_path), 0.5)] * 2)
    for result in whole:
        assert result['moved'] == [True] * 3 + [False] * 3
        assert result['waited'] == len([*MODELS.build(TOY).parameters()])
    args = (str(tmp_path / 'resumed'), 0.5, str(tmp_path / 'epoch_1.pth'))
    resumed = on_two_processes(run_until, args, args)
    assert [x['moved'] for x in resumed] == [[False] * 3] * 2
    for result in (*whole, *resumed):
        assert_equal(result['weights'], whole[0]['weights'])


@pytest.mark.parametrize(('losses', 'leads'), [((0.5, 1.6), True), ((1.6, 0.5), False)])
def test_processes_agree_whether_the_teacher_leads(losses, leads, on_two_processes, tmp_path):
    """The student's losses are 1."""
    moved = on_two_processes(run_leading, *[(str(tmp_path), x) for x in losses])
    assert moved == [[True] * 3 + [leads] * 3] * 2


@pytest.mark.parametrize('loop', ['epochs', pytest.param('iterations', marks=SLOW)])
def test_a_signal_to_one_process_ends_all_and_the_resumed_run_is_equal(
    on_two_processes, tmp_path, loop
):
    """In mid-epoch, before an epoch's end, and in a validation; each process has its own numbers."""
    ours, whole = str(tmp_path / 'ours'), str(tmp_path / 'whole')
    assert on_two_processes(run_until_signal, *[(whole, loop)] * 2) == [0, 0]
    moments = [dict(train_iter=4), dict(train_iter=6), dict(val_iter=(8, 0))]  # of 4 an epoch
    for number, moment in enumerate(moments):
        signals = dict(numbers=[signal.SIGTERM], **moment)
        args = [(ours, loop, number > 0, signals if rank == 1 else None) for rank in range(2)]
        assert on_two_processes(run_until_signal, *args) == [75, 75]
        saved = load_from_local(str(last_checkpoint(ours)))
        assert saved['meta']['iter'] == (6, 8, 8)[number]
        first, second = saved['random_states_of_ranks']
        assert first['workers'] != second['workers']
    assert on_two_processes(run_until_signal, *[(ours, loop, True)] * 2) == [0, 0]
    assert_equal_runs(tmp_path / 'ours', tmp_path / 'whole')
