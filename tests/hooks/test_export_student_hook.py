import torch
from mmdet.registry import METRICS
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook

from mmdet_sssd.runs import load_from_local

from ..distillers import assert_equal
from ..toy_detector import ITERS_PER_EPOCH, TOY_MODEL, toy_loader, toy_runner

NAMES = ['best_ap_epoch_2', 'epoch_3']  # the second validation is the best


@METRICS.register_module()
class ScriptedMetric(BaseMetric):
    """Gives a script's values, one after the other."""

    def __init__(self, **scripts):
        super().__init__()
        self.scripts = {name: iter(script) for name, script in scripts.items()}

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return {name: next(script) for name, script in self.scripts.items()}


def run(work_dir, hooks=(), scripts=None, save_best='ap', **kwargs):
    scripts = scripts or dict(ap=[0.1, 0.3, 0.2])
    settings = dict(
        hooks=[dict(type='ExportStudentHook'), *hooks],
        epochs=3,
        checkpoint=dict(save_best=save_best, rule='greater'),
        val_dataloader=toy_loader(shuffle=False),
        val_cfg=dict(type='ValLoop'),
        val_evaluator=dict(type='ScriptedMetric', **scripts),
        cfg=Config(dict(model=TOY_MODEL)),
    )
    runner = toy_runner(work_dir, **{**settings, **kwargs})
    runner.train()
    return runner


def exported(work_dir) -> dict[str, dict]:
    """The exported weights by their names, each of which has a config."""
    files = sorted((work_dir / 'export').glob('*.pth'))
    names = [path.stem.rpartition('-')[0] for path in files]
    configs = sorted(path.stem for path in (work_dir / 'export').glob('*.py'))
    assert sorted(names) == configs
    states = (dict(torch.load(path, weights_only=True)['state_dict']) for path in files)
    return dict(zip(names, states, strict=True))


def test_the_last_and_the_best_checkpoint_are_exported(tmp_path):
    runner = run(tmp_path)
    found = exported(tmp_path)
    assert sorted(found) == NAMES
    best, last = (found[name] for name in NAMES)
    assert_equal(last, dict(runner.model.student.state_dict()))
    assert not torch.equal(best['neck.weight'], last['neck.weight'])


def test_the_best_of_several_metrics_are_exported(tmp_path):
    scripts = dict(ap=[0.1, 0.3, 0.2], ar=[0.3, 0.2, 0.1])
    run(tmp_path, scripts=scripts, save_best=['ap', 'ar'])
    assert sorted(exported(tmp_path)) == ['best_ap_epoch_2', 'best_ar_epoch_1', 'epoch_3']


def test_the_last_checkpoint_of_a_run_that_stopped_early_is_exported(tmp_path):
    stop = dict(type='EarlyStoppingHook', monitor='ap', rule='less', patience=1)
    run(tmp_path, hooks=[stop])
    assert sorted(exported(tmp_path)) == ['best_ap_epoch_2', 'epoch_2']


def test_averaged_weights_are_exported_if_there_are_any(tmp_path, capsys):
    runner = run(tmp_path, hooks=[dict(type='EMAHook', momentum=0.3)])
    saved = load_from_local(str(tmp_path / 'epoch_3.pth'))
    averaged = exported(tmp_path)['epoch_3']
    assert_equal(averaged, {key: saved['state_dict'][f'student.{key}'] for key in averaged})
    assert not torch.equal(averaged['neck.weight'], runner.model.student.neck.weight)
    assert "Saved the student's averaged (EMA) weights to" in capsys.readouterr().out


def test_a_resumed_run_that_was_complete_is_exported(tmp_path):
    run(tmp_path / 'whole')
    run(tmp_path / 'resumed', resume=True, load_from=str(tmp_path / 'whole/epoch_3.pth'))
    files = [
        {path.name: path.read_bytes() for path in (tmp_path / name / 'export').iterdir()}
        for name in ('whole', 'resumed')
    ]
    assert len(files[0]) == 4
    assert files[0] == files[1]


def test_a_failed_export_does_not_end_the_run(tmp_path, capsys):
    runner = run(tmp_path, cfg=Config(dict(model=dict(type='ToyDetector'))))
    assert runner.iter == 3 * ITERS_PER_EPOCH
    assert (tmp_path / 'epoch_3.pth').exists()
    assert not (tmp_path / 'export').exists()
    printed = capsys.readouterr().out
    assert f'The student of {tmp_path}/epoch_3.pth was not exported: model.type' in printed
    assert 'Traceback' not in printed


def test_older_exports_are_named(tmp_path, capsys):
    run(tmp_path)
    assert 'has older exports' not in capsys.readouterr().out
    (tmp_path / 'export/best_ap_epoch_1-01234567.pth').touch()
    run(tmp_path)
    assert 'best_ap_epoch_1-01234567.pth' in capsys.readouterr().out


def test_the_first_process_alone_exports(tmp_path, monkeypatch):
    class SecondProcess(Hook):
        def after_train(self, runner):
            monkeypatch.setattr('mmengine.dist.utils.get_rank', lambda group=None: 1)

    run(tmp_path, hooks=[SecondProcess()])
    assert (tmp_path / 'epoch_3.pth').exists()
    assert not (tmp_path / 'export').exists()
