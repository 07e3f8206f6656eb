"""The benchmark command: ratios, its results, and what it refuses."""

import io
import json

import pytest
from mmengine.config import Config
from rich.console import Console

from mmdet_sssd import ConfigError
from mmdet_sssd.commands.benchmark.benchmark import (
    BenchmarkOptions,
    arm_configs,
    run_benchmark,
)
from mmdet_sssd.commands.benchmark.costs import Costs, noise_note
from mmdet_sssd.commands.training_steps import without_weights

from ...command import error_of
from ...stock_detectors import stock_config


@pytest.fixture(scope='module')
def stock(tmp_path_factory):
    path = tmp_path_factory.mktemp('benchmark') / 'stock.py'
    optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01))
    model = stock_config('retinanet')
    Config(dict(default_scope='mmdet', model=model, optim_wrapper=optim_wrapper)).dump(path)
    return str(path)


def costs(name, seconds, flops, memory=10) -> Costs:
    work = {'head': flops, 'backward pass': 2 * flops}
    return Costs(name, work, operators=work, waits={}, peak_memory=memory, seconds=seconds)


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


def test_results(stock, tmp_path):
    out, console = tmp_path / 'new/costs.json', Console(file=io.StringIO(), width=150)
    arms = ['baseline', 'paper+dim=channel']
    options = BenchmarkOptions(
        stock, arms, shape=(64, 96), objects=3, device='cpu', steps=2, json=out, profile=tmp_path
    )
    result = run_benchmark(options, console)
    assert json.loads(out.read_text()) == result
    assert result['shape'] == [64, 96]
    assert (result['batch'], result['objects'], result['steps']) == (2, 3, 2)
    assert list(result['arms']) == arms
    first, second = result['arms'].values()
    assert set(first['flops']) == {'backbone', 'neck', 'head', 'backward pass'}
    assert second['flops']['second head pass'] == first['flops']['head']
    assert len(second['seconds']) == 2
    for kind in ('operators', 'waits'):
        assert second[kind]['second head pass'] > 0
        assert second['ratios'][kind] > 1
    totals = [sum(x['flops'].values()) for x in (first, second)]
    assert second['ratios']['flops'] == totals[1] / totals[0] > 1
    assert second['ratios']['memory'] > 1
    assert first['ratios']['time'] == first['ratios']['time_over_flops'] == 1
    for arm in arms:
        assert (tmp_path / f'{arm}.trace.json').is_file()
        operators = (tmp_path / f'{arm}.operators.txt').read_text()
        assert 'aten::' in operators
        assert 'part: head' in operators
    text = console.file.getvalue()
    for words in (
        'operators / waits by part',
        'second head pass',
        'paper+dim=channel',
        'backward pass',
    ):
        assert words in text


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
        (dict(arms=['paper', 'paper']), '--arms lists paper twice'),
        (dict(steps=0), '--steps is 0'),
        (dict(objects=-1), '--objects is -1'),
        (dict(shape=(10, 800)), '--shape is'),
        (dict(amp=True), '--amp needs a GPU'),
    ],
)
def test_refusals(stock, settings, message):
    with pytest.raises(ConfigError, match=message):
        arm_configs(BenchmarkOptions(stock, **{'device': 'cpu', **settings}))


def test_an_arm_with_an_unknown_key_is_refused_in_one_line(stock):
    command = ('benchmark', stock, '--arms', 'baseline,paper+model.colour=3', '--device', 'cpu')
    found = error_of(*command, '--shape', 64, 64)
    assert found.startswith('colour is not a setting of SSSDDistiller')
