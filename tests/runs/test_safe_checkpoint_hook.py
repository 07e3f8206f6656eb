import os

import pytest
from mmengine.hooks import Hook
from torch import nn

from mmdet_sssd import ConfigError
from mmdet_sssd.runs import SafeCheckpointHook, is_whole, load_from_local

from ..tools.run_comparison import assert_equal_states, scalars
from .stock_runs import (
    EPOCH,
    LAST,
    Killed,
    assert_equal_runs,
    last_checkpoint,
    make_runner,
    pth_files,
    train,
)

KEPT = dict(max_keep_ckpts=1, save_best='mAP')


@pytest.fixture
def steps(monkeypatch):
    """What is done to checkpoints: (function, file name), in turn; at step number `fatal` it ends."""

    class Steps(list):
        fatal = None

        def take(self, name, path):
            self.append((name, os.path.basename(path)))
            if len(self) - 1 == self.fatal:
                raise Killed

    steps = Steps()
    replace, remove = os.replace, os.remove

    def noted_replace(source, target):
        steps.take('written', target)
        replace(source, target)
        steps.take('in place', target)

    def noted_remove(path):
        steps.take('removed', path)
        remove(path)

    monkeypatch.setattr(os, 'replace', noted_replace)
    monkeypatch.setattr(os, 'remove', noted_remove)
    return steps


def test_outdated_checkpoints_are_removed_last(tmp_path, steps):
    train(tmp_path, checkpoint=KEPT)
    assert [(what, name) for what, name in steps if what != 'written'] == [
        ('in place', 'epoch_1.pth'),
        ('in place', 'best_mAP_epoch_1.pth'),
        ('in place', 'epoch_1.pth'),  # once more, now that it knows of the best one
        ('in place', 'epoch_2.pth'),
        ('removed', 'epoch_1.pth'),
        ('in place', 'best_mAP_epoch_2.pth'),
        ('in place', 'epoch_2.pth'),
        ('removed', 'best_mAP_epoch_1.pth'),
        ('in place', 'epoch_3.pth'),
        ('removed', 'epoch_2.pth'),
        ('in place', 'epoch_4.pth'),
        ('removed', 'epoch_3.pth'),
        ('in place', 'best_mAP_epoch_4.pth'),
        ('in place', 'epoch_4.pth'),
        ('removed', 'best_mAP_epoch_2.pth'),
    ]
    assert pth_files(tmp_path) == {'epoch_4.pth', 'best_mAP_epoch_4.pth'}


MOMENTS = [*(('epochs', i) for i in range(6, 19)), *(('iterations', i) for i in (6, 10, 14))]


# All that is done in the second epoch and the third, see the test above.
@pytest.mark.parametrize(
    ('loop', 'fatal'),
    [pytest.param(*x, marks=pytest.mark.slow if x[1] % 3 else []) for x in MOMENTS],
)
def test_a_run_killed_at_any_step_of_saving_is_resumed_to_the_bit(
    tmp_path, whole, steps, loop, fatal
):
    case = 'distilled', loop
    expected = whole(*case, checkpoint=KEPT)
    assert {row['distill_coef'] for row in scalars(expected).values()} == {2, 4}
    steps.clear()
    steps.fatal = fatal
    with pytest.raises(Killed):
        train(tmp_path, *case, checkpoint=KEPT)
    assert is_whole(str(last_checkpoint(tmp_path)))
    assert all(is_whole(str(tmp_path / name)) for name in pth_files(tmp_path))
    steps.fatal = None

    train(tmp_path, *case, checkpoint=KEPT, resume=True)
    assert_equal_runs(tmp_path, expected)
    # One stays behind if the run was killed before it took note of it, or before its removal.
    assert pth_files(expected) <= pth_files(tmp_path)
    assert not list(tmp_path.glob('*.writing'))


def test_checkpoints_without_optimizer_are_written_once_too(tmp_path, steps):
    train(tmp_path, checkpoint=dict(save_optimizer=False))
    written = [name for what, name in steps if what == 'in place']
    assert written == [f'epoch_{i}.pth' for i in range(1, 5)]


@pytest.mark.parametrize('part', ['weight', 'running_var'])
def test_a_diverged_run_ends_and_its_last_good_checkpoint_stays(tmp_path, part):
    runner = make_runner(tmp_path, checkpoint=KEPT | dict(save_best=None))
    runner.model.norm = nn.BatchNorm2d(8)

    class Diverging(Hook):
        def after_train_iter(self, runner, batch_idx, *args, **kwargs):
            if runner.epoch == 1:
                getattr(runner.model.norm, part).data[0] = float('nan')

    runner.register_hook(Diverging())
    with pytest.raises(ConfigError, match=f'weights are not finite, the first is norm.{part}'):
        runner.train()
    assert last_checkpoint(tmp_path).name == 'epoch_1.pth'
    assert pth_files(tmp_path) == {'epoch_1.pth'}


@pytest.mark.parametrize('ap', [(0.1, 0.3, 0.2, 0.4), (0.1, 0.3, 0.2, 0.25)])
def test_a_best_one_written_again_under_its_name_stays(tmp_path, ap):
    """As where epochs are counted in an iteration loop: there is only the one number 0."""
    evaluator = dict(type='MadeUp', ap=ap)
    runner = make_runner(tmp_path, loop='iterations', checkpoint=KEPT, val_evaluator=evaluator)
    hook = next(x for x in runner.hooks if hasattr(x, 'save_best'))
    hook.by_epoch = True
    runner.train()
    assert {name for name in pth_files(tmp_path) if 'best' in name} == {'best_mAP_iter_0.pth'}


@pytest.mark.parametrize('loop', ['epochs', 'iterations'])
def test_a_run_goes_on_from_the_newest_whole_checkpoint(tmp_path, whole, loop, steps):
    case = 'distilled', loop
    train(tmp_path, *case)
    name = 'iter_{}.pth' if loop == 'iterations' else 'epoch_{}.pth'
    third, fourth = (
        tmp_path / name.format(i * EPOCH if loop == 'iterations' else i) for i in (3, 4)
    )
    fourth.write_bytes(fourth.read_bytes()[:1000])
    third.write_bytes(b'')
    (tmp_path / 'last_checkpoint').write_bytes(b'')
    steps.clear()
    train(tmp_path, *case, resume=True)
    written = [name for what, name in steps if what == 'in place']
    assert written == ['last_checkpoint', third.name, fourth.name]
    assert_equal_runs(tmp_path, whole(*case))


def test_a_restarted_run_leaves_an_earlier_one_s_checkpoints_alone(tmp_path, whole, monkeypatch):
    case = 'distilled', 'epochs'
    train(tmp_path, *case)
    for restarts in '01':  # before the first checkpoint
        monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', restarts)
        with pytest.raises(Killed):
            train(tmp_path, *case, killed_before=2)
    with pytest.raises(Killed):
        train(tmp_path, *case, killed_before=EPOCH + 1)
    train(tmp_path, *case)
    ours, expected = (load_from_local(str(last_checkpoint(x))) for x in (tmp_path, whole(*case)))
    assert_equal_states(ours['state_dict'], expected['state_dict'])


def test_a_run_does_not_go_on_from_an_earlier_one_s_checkpoint(tmp_path, whole):
    case = 'distilled', 'epochs'
    train(tmp_path, *case)
    (tmp_path / 'preempted.pth').write_bytes((tmp_path / 'epoch_2.pth').read_bytes())
    with pytest.raises(Killed):
        train(tmp_path, *case, killed_before=2)  # before its first checkpoint
    train(tmp_path, *case, resume=True)
    logs = [x.read_text() for x in tmp_path.glob('*/*.log')]
    assert any('ended before its first checkpoint' in x for x in logs)
    ours, expected = (load_from_local(str(last_checkpoint(x))) for x in (tmp_path, whole(*case)))
    assert_equal_states(ours['state_dict'], expected['state_dict'])


def test_a_run_that_was_resumed_from_a_given_file_goes_on_from_it(tmp_path, whole):
    """The later checkpoints in its folder are of the run that it left."""
    case = 'distilled', 'epochs'
    train(tmp_path, *case)
    for settings in (dict(load_from=str(tmp_path / 'epoch_1.pth')), {}):
        with pytest.raises(Killed):
            train(tmp_path, *case, killed_before=EPOCH + 2, resume=True, **settings)
        assert last_checkpoint(tmp_path) == tmp_path / 'epoch_1.pth'


def test_a_test_after_training_leaves_its_checkpoint_named(tmp_path):
    runner = train(tmp_path)
    runner.call_hook('before_run')  # as when the same process goes on to test
    assert last_checkpoint(tmp_path).name == 'epoch_4.pth'


def test_a_run_without_checkpoints_starts_from_the_beginning_and_says_so(tmp_path):
    (tmp_path / 'last_checkpoint').write_bytes(b'')  # where stock crashes
    runner = train(tmp_path, resume=True)
    (log,) = tmp_path.glob('*/*.log')
    assert 'Training starts from the beginning' in log.read_text()
    assert runner.iter == LAST


def test_a_file_that_is_given_is_taken_as_it_is(tmp_path):
    train(tmp_path)
    (tmp_path / 'last_checkpoint').unlink()
    runner = make_runner(tmp_path, resume=True, load_from=str(tmp_path / 'epoch_2.pth'))
    runner.call_hook('before_run')
    assert runner._load_from == str(tmp_path / 'epoch_2.pth')
    runner = make_runner(tmp_path)  # not resumed
    runner.call_hook('before_run')
    assert runner._load_from is None


def test_checkpoints_in_a_folder_of_their_own(tmp_path):
    work_dir, out = tmp_path / 'run', tmp_path / 'out' / 'run'
    checkpoint = dict(out_dir=str(out.parent), max_keep_ckpts=1)
    train(work_dir, checkpoint=checkpoint)
    assert pth_files(out) == {'epoch_4.pth'}
    assert not pth_files(work_dir)
    left_by_killed_runs = [out / 'epoch_9.pth.writing', work_dir / 'last_checkpoint.writing']
    for path in left_by_killed_runs:
        path.write_bytes(b'PK')
    (work_dir / 'last_checkpoint').unlink()
    runner = train(work_dir, checkpoint=checkpoint, resume=True)
    assert runner._load_from == str(out / 'epoch_4.pth')
    assert not any(path.exists() for path in left_by_killed_runs)


@pytest.mark.parametrize(
    'place', [dict(out_dir='s3://a'), dict(backend_args=dict(backend='petrel'))]
)
def test_storage_elsewhere_is_refused(place):
    with pytest.raises(ConfigError, match='saves on local disks'):
        SafeCheckpointHook(**place)
