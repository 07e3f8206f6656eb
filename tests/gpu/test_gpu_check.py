"""The checks for GPUs in their short form on a CPU, and that a broken one is told from the others."""

import json
import warnings
from argparse import Namespace

import pytest
import torch

from . import __main__ as gpu_check
from . import checks, costs, numbers, ops, runs, training
from .checks import Settings, Skipped, Wrong, run_check, run_group, within, write_report

SHOWN = {  # of each group what is quick; all of it: bash tools/gpu_check.sh --short
    'ops': ops.CHECKS,
    'numbers': {k: x for k, x in numbers.CHECKS.items() if k != 'step_of_fcos'},
    'training': {k: x for k, x in training.CHECKS.items() if k.startswith('retinanet')},
    'runs': runs.CHECKS,
    'costs': {k: x for k, x in costs.CHECKS.items() if k.startswith('retinanet')},
    'compiled': {'retinanet': training.COMPILED['retinanet']},
}


@pytest.mark.skipif(torch.cuda.is_available(), reason='bash tools/gpu_check.sh is the whole form')
def test_the_short_form_on_a_cpu(tmp_path):
    settings = Settings('cpu', tmp_path, short=True)
    results = [x for group, made in SHOWN.items() for x in run_group(group, made, settings)]
    assert [(x.name, x.reason) for x in results if x.result == 'failed'] == []
    assert sum(x.result == 'ok' for x in results) == 19
    assert all(x.reason for x in results if x.result == 'skipped')
    assert {x.name: x.numbers for x in results}['runs/resumed_bfloat16']['to_the_bit']
    write_report(tmp_path, checks.circumstances(settings), results)
    assert '# GPU checks on a CPU' in (tmp_path / 'gpu_check.md').read_text()


def raising(error):
    def check(settings):
        raise error

    return check


def test_a_check_ends_in_a_result_whatever_it_raises(tmp_path):
    settings = Settings('cpu', tmp_path)
    made = {
        'good': lambda settings: dict(error=0.125),
        'skipped': raising(Skipped('there is no GPU')),
        'wrong': raising(Wrong('too much', error=2.0)),
        'broken': raising(RuntimeError('CUDA error: a | b\n')),
        'nan': lambda settings: within('the error', float('nan'), 1),
    }
    results = [run_check(name, check, settings) for name, check in made.items()]
    assert [x.result for x in results] == ['ok', 'skipped', 'failed', 'failed', 'failed']
    assert results[2].numbers == dict(error=2.0)
    write_report(tmp_path, dict(device='a GPU'), results)
    table = (tmp_path / 'gpu_check.md').read_text()
    assert '1 ok, 3 failed, 1 skipped' in table
    assert '| good | ok | error 0.125 |' in table
    assert '| broken | failed: RuntimeError: CUDA error: a / b | ' in table
    assert (
        json.loads((tmp_path / 'gpu_check.json').read_text())['results'][2]['reason'] == 'too much'
    )


def written(names, *results):
    return '\n'.join(json.dumps(x) for x in (dict(device='a GPU'), names, *results))


def test_what_a_process_did_not_come_to_is_told(tmp_path):
    good = dict(name='ops/a', result='ok', numbers={}, reason='', seconds=1.0)
    gpu_check.lines_of('ops', tmp_path).write_text(written(['a', 'b', 'c'], good))
    where, results = gpu_check.results_of('ops', tmp_path, 'the process ended with code -11')
    assert where == dict(device='a GPU')
    assert [(x.name, x.result) for x in results] == [
        ('ops/a', 'ok'),
        ('ops/b', 'failed'),
        ('ops/c', 'skipped'),
    ]
    _, results = gpu_check.results_of('ops', tmp_path, 'no time was left')
    assert [x.result for x in results] == ['ok', 'skipped', 'skipped']
    (nothing,) = gpu_check.results_of('numbers', tmp_path, '')[1]
    assert (nothing.name, nothing.result) == ('numbers', 'failed')


def test_a_crash_and_a_process_out_of_time_end_no_other_group(tmp_path, monkeypatch):
    args = Namespace(out=tmp_path, short=True)
    monkeypatch.setattr(gpu_check, 'command_of', lambda *_: ['sh', '-c', 'echo gone; exit 3'])
    (result,) = gpu_check.run_apart('ops', args, 60)[1]
    assert (result.result, result.reason) == ('failed', 'the process ended with code 3: gone')
    monkeypatch.setattr(gpu_check, 'command_of', lambda *_: ['sleep', '60'])
    (result,) = gpu_check.run_apart('ops', args, 0.2)[1]
    assert (result.result, result.reason) == ('skipped', 'no time was left')


def test_host_synchronisations_are_counted_by_place(tmp_path, monkeypatch):
    """With what a step on a GPU would warn of."""
    monkeypatch.setattr(torch.cuda, 'set_sync_debug_mode', lambda mode: None)

    class Waits:
        def step(self):
            warnings.warn('called a synchronizing CUDA operation', stacklevel=1)
            warnings.warn('something else', stacklevel=1)

    assert training.synchronising_places(Waits()) == {'elsewhere': 1}
    stock, ours = {'a': 2}, {'a': 4, 'b _without_degenerate_boxes': 1}
    places = iter([training.Counter(stock), training.Counter(ours)] * 2)
    monkeypatch.setattr(training, 'trainee', lambda *_: None)
    monkeypatch.setattr(training, 'synchronising_places', lambda _: next(places))
    settings = Settings('cuda', tmp_path)
    numbers = training.host_synchronisations('fcos', settings)
    assert numbers == dict(stock=2, distilled=5, beyond=1)
    ours['c'] = 1
    places = iter([training.Counter(stock), training.Counter(ours)])
    with pytest.raises(Wrong, match="'c': 1"):
        training.host_synchronisations('fcos', settings)
