import os
from itertools import count
from pathlib import Path

import pytest
import torch
from mmdet.registry import METRICS
from mmengine.evaluator import BaseMetric
from mmengine.fileio import register_backend
from mmengine.fileio.backends import BaseStorageBackend
from mmengine.hooks import Hook
from mmengine.logging import MessageHub

from mmdet_sssd import ConfigError
from mmdet_sssd.runs import is_whole, load_from_local

from ..tools.run_comparison import assert_equal_states, scalars
from ..toy_detector import ITERS_PER_EPOCH, toy_loader, toy_runner

LOOPS = {
    'epochs': dict(type='EpochBasedTrainLoop', max_epochs=4),
    'iterations': dict(type='IterBasedTrainLoop', max_iters=4 * ITERS_PER_EPOCH),
}
SCHEDULERS = {  # a drop in the third epoch
    'epochs': dict(type='MultiStepLR', milestones=[2]),
    'iterations': dict(type='MultiStepLR', milestones=[2 * ITERS_PER_EPOCH + 1], by_epoch=False),
}
PHASES = [
    dict(type='AdaptiveDistillCoefHook'),
    dict(type='DistillPhasesHook', detach_student=3 / 8),
]
RUNS = count()
AP = [0.1, 0.3, 0.2, 0.4]  # after each epoch
RECALL = [0.4, 0.3, 0.5, 0.2]


@METRICS.register_module()
class ToyMetric(BaseMetric):
    """Gives made-up results, and draws random numbers, as anything in a validation may."""

    def process(self, data_batch, data_samples):
        torch.rand(1)
        self.results.append(0)

    def compute_metrics(self, results):
        iters = MessageHub.get_current_instance().get_info('iter') + 1
        index = (iters // ITERS_PER_EPOCH - 1) % len(AP)
        return {'mAP': AP[index], 'AR@10': RECALL[index]}


@register_backend('remote')
class RemoteBackend(BaseStorageBackend):
    """Storage elsewhere: nothing that the local file system knows of."""

    files = {}

    def put(self, obj, filepath):
        self.files[filepath] = obj

    def get(self, filepath):
        return self.files[filepath]

    get_text = get

    def isfile(self, filepath):
        return filepath in self.files

    def remove(self, filepath):
        del self.files[filepath]

    def join_path(self, *paths):
        return '/'.join(paths)


class Killed(BaseException):
    """The process ends here; nothing that an ordinary error would set off is done."""


def make_runner(work_dir, loop='epochs', resume=False, val=False, stock=True, **checkpoint):
    """Make a runner, of a stock detector or of one whose distillation changes in the second epoch
    and in the third; ``checkpoint`` are the hook's arguments.
    """
    by_epoch = loop == 'epochs'
    interval = 1 if by_epoch else ITERS_PER_EPOCH
    settings = dict(
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1),
            checkpoint=dict(
                type='SafeCheckpointHook', by_epoch=by_epoch, interval=interval, **checkpoint
            ),
        ),
        resume=resume,
        experiment_name=f'{work_dir}{next(RUNS)}',
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.001, momentum=0.9)),
    )
    if val:
        settings |= dict(
            val_dataloader=toy_loader(shuffle=False),
            val_cfg=dict(),
            val_evaluator=dict(type='ToyMetric'),
        )
    if stock:
        preprocessor = dict(type='DetDataPreprocessor')
        settings |= dict(model=dict(type='ToyDetector', data_preprocessor=preprocessor))
    else:
        settings |= dict(param_scheduler=SCHEDULERS[loop])
    hooks = [dict(type='RandomStateHook'), *([] if stock else PHASES)]
    train_cfg = LOOPS[loop] | (dict(val_interval=interval) if val else {})
    return toy_runner(work_dir, hooks=hooks, train_cfg=train_cfg, **settings)


def train(work_dir, *args, **kwargs):
    runner = make_runner(work_dir, *args, **kwargs)
    runner.train()
    return runner


def pth_files(folder):
    return {path.name for path in Path(folder).glob('*.pth')}


def last_checkpoint(work_dir):
    return Path((Path(work_dir) / 'last_checkpoint').read_text())


def assert_equal_runs(ours, expected):
    """Compare what training has led to in two runs, and what a resumed one has logged on its way."""
    paths = [last_checkpoint(folder) for folder in (ours, expected)]
    assert paths[0].name == paths[1].name
    rows = scalars(Path(expected))
    assert len(rows) == 4 * ITERS_PER_EPOCH
    assert scalars(Path(ours)) == rows
    ours, expected = (load_from_local(str(path)) for path in paths)
    for key in ('state_dict', 'optimizer', 'random_state', 'adaptive_distill_coef.distill'):
        assert (key in ours) == (key in expected)
        assert_equal_states(ours.get(key), expected.get(key), key)
    assert_equal_states(ours.get('param_schedulers'), expected.get('param_schedulers'))


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
    train(tmp_path, max_keep_ckpts=1, val=True, save_best='mAP')
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


def test_a_diverged_run_ends_and_its_last_good_checkpoint_stays(tmp_path):
    runner = make_runner(tmp_path, max_keep_ckpts=1)

    class Diverging(Hook):
        def after_train_iter(self, runner, batch_idx, *args, **kwargs):
            if runner.epoch == 1:
                next(runner.model.parameters()).data[0] = float('nan')

    runner.register_hook(Diverging())
    with pytest.raises(
        ConfigError, match=r'weights are not finite, the first is backbone.weight: the run diverged'
    ):
        runner.train()
    assert last_checkpoint(tmp_path).name == 'epoch_1.pth'
    assert pth_files(tmp_path) == {'epoch_1.pth'}


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    """Whole runs, by loop."""
    folders = {loop: tmp_path_factory.mktemp(loop) for loop in LOOPS}
    for loop, folder in folders.items():
        train(folder, loop, **RESUMED)
        rows = scalars(folder)
        assert {row['distill_coef'] for row in rows.values()} == {2, 4}
        (log,) = folder.glob('*/*.log')
        assert 'learns from the teacher from here on' in log.read_text()
    return folders


RESUMED = dict(stock=False, max_keep_ckpts=1, val=True, save_best='mAP')
MOMENTS = [*(('epochs', i) for i in range(6, 19)), *(('iterations', i) for i in (6, 10, 14))]


# All that is done in the second epoch and the third, see the test above.
@pytest.mark.parametrize(
    ('loop', 'fatal'),
    [pytest.param(*x, marks=pytest.mark.slow if x[1] % 3 else []) for x in MOMENTS],
)
def test_a_run_killed_at_any_step_of_saving_is_resumed_to_the_bit(
    tmp_path, uninterrupted, steps, loop, fatal
):
    steps.fatal = fatal
    with pytest.raises(Killed):
        train(tmp_path, loop, **RESUMED)
    assert is_whole(str(last_checkpoint(tmp_path)))
    assert all(is_whole(str(tmp_path / name)) for name in pth_files(tmp_path))
    steps.fatal = None

    runner = make_runner(tmp_path, loop, resume=True, **RESUMED)
    runner.train()
    assert_equal_runs(tmp_path, uninterrupted[loop])
    assert runner.message_hub.get_info('best_score') == AP[3]
    # One stays behind if the run was killed before it took note of it, or before its removal.
    assert pth_files(uninterrupted[loop]) <= pth_files(tmp_path)
    assert not list(tmp_path.glob('*.writing'))


def test_a_best_one_that_is_written_again_under_its_name_stays(tmp_path):
    """As where epochs are counted in an iteration loop: there is only the one number 0."""
    runner = make_runner(tmp_path, 'iterations', val=True, save_best='mAP')
    hook = next(x for x in runner.hooks if hasattr(x, 'save_best'))
    hook.by_epoch = True
    runner.train()
    assert {name for name in pth_files(tmp_path) if 'best' in name} == {'best_mAP_iter_0.pth'}


@pytest.mark.parametrize('stock', [False, True], ids=['distilled', 'stock'])
@pytest.mark.parametrize('loop', LOOPS)
def test_a_run_goes_on_from_the_newest_whole_checkpoint(tmp_path, loop, stock, steps):
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    train(whole, loop, stock=stock)
    train(killed, loop, stock=stock)
    numbers = [ITERS_PER_EPOCH * i for i in range(1, 5)] if loop == 'iterations' else range(1, 5)
    name = 'iter_{}.pth' if loop == 'iterations' else 'epoch_{}.pth'
    *_, third, fourth = [killed / name.format(i) for i in numbers]
    fourth.write_bytes(fourth.read_bytes()[:1000])
    third.write_bytes(b'')
    (killed / 'last_checkpoint').write_bytes(b'')
    runner = make_runner(killed, loop, resume=True, stock=stock)
    steps.clear()
    runner.train()
    assert [name for what, name in steps if what == 'in place'] == [third.name, fourth.name]
    assert_equal_runs(killed, whole)


def test_a_run_without_checkpoints_starts_from_the_beginning_and_says_so(tmp_path, uninterrupted):
    (tmp_path / 'last_checkpoint').write_bytes(b'')  # where stock crashes
    runner = train(tmp_path, resume=True, val=True)
    (log,) = tmp_path.glob('*/*.log')
    assert 'Training starts from the beginning' in log.read_text()
    assert runner.iter == 4 * ITERS_PER_EPOCH


def test_a_file_that_is_given_is_taken_as_it_is(tmp_path):
    train(tmp_path)
    (tmp_path / 'last_checkpoint').unlink()
    runner = make_runner(tmp_path, resume=True)
    runner._load_from = str(tmp_path / 'epoch_2.pth')
    runner.call_hook('before_run')
    assert runner._load_from == str(tmp_path / 'epoch_2.pth')
    runner = make_runner(tmp_path)  # not resumed
    runner.call_hook('before_run')
    assert runner._load_from is None


def test_checkpoints_in_a_folder_of_their_own(tmp_path):
    work_dir, out = tmp_path / 'run', tmp_path / 'out' / 'run'
    train(work_dir, out_dir=str(out.parent), max_keep_ckpts=1)
    assert pth_files(out) == {'epoch_4.pth'}
    assert not pth_files(work_dir)
    left_by_killed_runs = [out / 'epoch_9.pth.writing', work_dir / 'last_checkpoint.writing']
    for path in left_by_killed_runs:
        path.write_bytes(b'PK')
    (work_dir / 'last_checkpoint').unlink()
    runner = train(work_dir, out_dir=str(out.parent), max_keep_ckpts=1, resume=True)
    assert runner.iter == 4 * ITERS_PER_EPOCH
    assert runner._load_from == str(out / 'epoch_4.pth')
    assert not any(path.exists() for path in left_by_killed_runs)


def test_storage_elsewhere_is_written_and_cleared_as_mmengine_does_it(tmp_path):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run/last_checkpoint.writing').touch()
    settings = dict(out_dir='store', backend_args=dict(backend='remote'), val=True)
    train(tmp_path / 'run', max_keep_ckpts=1, save_best='mAP', **settings)
    assert set(RemoteBackend.files) == {'store/run/epoch_4.pth', 'store/run/best_mAP_epoch_4.pth'}
    assert not (tmp_path / 'run/last_checkpoint.writing').exists()
    assert last_checkpoint(tmp_path / 'run') == Path('store/run/epoch_4.pth')
    runner = make_runner(tmp_path / 'run', resume=True, **settings)
    runner.call_hook('before_run')
    assert runner._resume  # mmengine itself reads last_checkpoint then
    assert runner._load_from is None
