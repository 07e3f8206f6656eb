"""The benchmark command: ratios, its results, and what it refuses."""

import io
import json
from pathlib import Path

import pytest
from mmengine.config import Config
from rich.console import Console

from mmdet_sssd import ConfigError
from mmdet_sssd.commands.benchmark.benchmark import BenchmarkOptions, arm_configs, run_benchmark
from mmdet_sssd.commands.benchmark.costs import Costs, cost_table, noise_note
from mmdet_sssd.commands.benchmark.counts import PARTS
from mmdet_sssd.commands.training_steps import without_weights
from mmdet_sssd.models import SemiDistiller

from ...stock_detectors import stock_config
from ...toy_detector import TOY_MODEL


@pytest.fixture(scope='module')
def stock(tmp_path_factory):
    path = tmp_path_factory.mktemp('benchmark') / 'stock.py'
    optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01))
    model = stock_config('retinanet')
    Config(dict(default_scope='mmdet', model=model, optim_wrapper=optim_wrapper)).dump(path)
    return str(path)


def costs(name, seconds, flops, memory=10) -> Costs:
    parts = dict(student=dict(flops=flops, operators=flops, waits=0))
    return Costs(name, parts, peak_memory=memory, seconds=seconds)


def test_ratios_by_hand():
    stock = costs('baseline', [1.0, 2.0, 4.0], 10)
    found = costs('paper', [2.0, 4.2, 8.0], 15, 25).to_dict(stock)
    ratios = found['ratios']
    assert list(ratios['time_quartiles'].values()) == pytest.approx([2, 2, 2.05])  # of 2, 2.1, 2
    assert (ratios['time'], ratios['flops'], ratios['memory']) == pytest.approx((2, 1.5, 2.5))
    assert ratios['time_over_flops'] == pytest.approx(2 / 1.5)
    assert not ratios['too_noisy']  # the machine became slower for both alike
    assert found['step_time']['median'] == 4.2


def test_a_noisy_machine_is_reported():
    stock = costs('baseline', [1.0, 1.0, 1.0], 10)
    arms = dict(baseline=[1.0, 1.0, 1.0], calm=[2.0, 2.1, 2.0], wild=[2.0, 2.6, 3.0])
    found = [costs(name, seconds, 10).to_dict(stock) for name, seconds in arms.items()]
    assert noise_note(found[:2]) == ''
    assert noise_note(found).startswith('Step times of wild are too noisy')


def test_the_table_of_three_arms_fits_a_narrow_terminal():
    arms = [costs(name, [0.5123, 0.6], 10) for name in ('baseline', 'config', 'paper+dim=channel')]
    console = Console(file=io.StringIO(), width=80)
    console.print(cost_table([arm.to_dict(arms[0]) for arm in arms], 'bytes'))
    text = console.file.getvalue()
    whole = (
        'time × / FLOPs ×',
        'operators (waits) of',
        'paper+dim=channel',
        '0.5342 – 0.5781',
        '10 (0)',
    )
    assert all(x in text for x in whole)


def test_results(stock, tmp_path):
    out, console = tmp_path / 'new/costs.json', Console(file=io.StringIO(), width=150)
    arms = ['baseline', 'paper+dim=channel']
    options = BenchmarkOptions(
        stock, arms, shape=(64, 96), objects=3, device='cpu', steps=2, json=out
    )
    result = run_benchmark(options, console)
    assert json.loads(out.read_text()) == result
    assert result['shape'] == [64, 96]
    assert (result['batch'], result['objects'], result['steps']) == (2, 3, 2)
    first, second = result['arms'].values()
    assert len(second['seconds']) == 2
    for kind in ('flops', 'operators', 'waits'):
        assert second['ratios'][kind] == second[kind] / first[kind] > 1
        assert sum(x[kind] for x in second['parts'].values()) == second[kind]
        assert second['parts']['student'][kind] == first['parts']['student'][kind]
    assert list(first['parts']) == ['student', 'backward and other']
    assert list(second['parts']) == list(PARTS)
    head, teacher = (second['parts'][x]['operators'] for x in ('second head pass', 'teacher'))
    assert head + teacher < second['parts']['backward and other']['operators']
    assert second['ratios']['memory'] > 1
    assert first['ratios']['time'] == first['ratios']['time_over_flops'] == 1
    assert all(arm in console.file.getvalue() for arm in arms)


def test_a_profile_shows_modules_and_operators(tmp_path):
    cfg = dict(model=TOY_MODEL['student'], optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)))
    Config(cfg).dump(tmp_path / 'toy.py')
    shown = dict(arms=['baseline'], shape=(64, 64), device='cpu', steps=1, profile=tmp_path)
    run_benchmark(BenchmarkOptions(str(tmp_path / 'toy.py'), **shown), Console(file=io.StringIO()))
    assert 'nn.Module: Conv2d' in (tmp_path / 'baseline.trace.json').read_text()
    assert 'aten::convolution' in (tmp_path / 'baseline.operators.txt').read_text()


@pytest.fixture(scope='module')
def semi(stock):
    """A config as ``wrap --teacher … --unlabelled …`` writes it."""
    path = Path(stock).with_name('semi.py')
    cfg = Config.fromfile(stock)
    teacher = dict(type='PretrainedTeacher', config=stock, checkpoint='teacher.pth')
    cfg.model = dict(type='SemiDistiller', student=cfg.model, teachers=dict(pretrained=teacher))
    cfg.dump(path)
    return str(path)


def test_a_step_with_unlabelled_images_is_measured(semi, monkeypatch):
    """Half of the batch; beside stock's steps, in which all images have labels."""
    losses = []
    train_step = SemiDistiller.train_step
    noted = lambda *args: losses.append(train_step(*args)) or losses[-1]  # noqa: E731
    monkeypatch.setattr(SemiDistiller, 'train_step', noted)
    options = BenchmarkOptions(semi, batch=3, shape=(64, 96), objects=3, device='cpu', steps=1)
    baseline, distilled = run_benchmark(options, Console(file=io.StringIO()))['arms'].values()
    assert all({'loss_cls', 'unsup.loss_cls', 'unsup.pseudo_boxes'} <= x.keys() for x in losses)
    for kind in ('flops', 'operators', 'waits', 'time'):
        assert distilled['ratios'][kind] > 1
    assert distilled['peak_memory'] > baseline['peak_memory']
    assert distilled['parts']['teacher']['operators'] > 100
    with pytest.raises(ConfigError, match='--batch is 1; accepted: 2 or more'):
        arm_configs(BenchmarkOptions(semi, batch=1, device='cpu'))


def test_no_weights_and_no_batch_augmentations():
    model = dict(
        backbone=dict(type='A', init_cfg=dict(type='Pretrained', checkpoint='torchvision://x')),
        neck=dict(init_cfg=dict(type='Xavier', layer='Conv2d')),
        data_preprocessor=dict(batch_augments=[dict(type='BatchSyncRandomResize')]),
        teachers=dict(large=dict(type='PretrainedTeacher', config='a.py', checkpoint='a.pth')),
    )
    assert without_weights(model) == dict(
        backbone=dict(type='A', init_cfg=None),
        neck=dict(init_cfg=dict(type='Xavier', layer='Conv2d')),
        data_preprocessor=dict(),
        teachers=dict(large=dict(type='PretrainedTeacher', config='a.py', checkpoint=None)),
    )


def test_a_stock_config_of_mmdet_needs_neither_data_nor_weights():
    config = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
    configs = arm_configs(BenchmarkOptions(config, device='cpu'))
    assert configs['config'].model.student.backbone.init_cfg is None
    assert configs['baseline'].model == configs['config'].model.student


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(arms=['baseline', 'ssd']), 'unknown arm ssd'),
        (dict(shape=(10, 800)), '--shape is'),
        (dict(amp=True), '--amp needs a GPU'),
    ],
)
def test_refusals(stock, settings, message):
    with pytest.raises(ConfigError, match=message):
        arm_configs(BenchmarkOptions(stock, **{'device': 'cpu', **settings}))
