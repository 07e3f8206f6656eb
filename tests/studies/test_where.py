"""The study of where it helps, on cells of seconds."""

import json
import os
from unittest import mock

import pytest
import torch

from mmdet_sssd.commands.shapes import draw_data_set

from . import where
from .where_record import RecordHook, by_origin, gradients

TINY = {**where.BASE, 'images': 48, 'epochs': 2, 'width': 16, 'base_channels': 8}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    out = tmp_path_factory.mktemp('data')
    draw_data_set(out / 'pictograms', 64, 4, 4, hard=True)
    return out


@pytest.fixture(autouse=True)
def same_environment():
    """Configs of cells are read from variables that a worker of the study keeps."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(where, 'RESULTS', tmp_path / 'results.jsonl')
    monkeypatch.setattr(where, 'WORK_DIRS', tmp_path / 'work_dirs')
    monkeypatch.setattr(where, 'MEASURE_EVERY', 1)
    monkeypatch.setattr(where, 'config_of', unsure_config)
    return tmp_path


def unsure_config(*args, of_cell=where.config_of):
    """Let detectors that have seen few batches detect something."""
    cfg = of_cell(*args)
    cfg.model.get('student', cfg.model).test_cfg.score_thr = 0.0
    return cfg


@pytest.mark.parametrize('arm', ['baseline', 'features', 'gentle'])
def test_a_cell_ends_as_one_line_and_is_not_trained_again(data, elsewhere, arm):
    cell = {**TINY, 'arm': arm}
    where.train_alone(data, where.name_of(cell), cell)
    (line,) = where.finished().values()
    assert line['cell'] == cell
    assert [x['epoch'] for x in line['val']] == [1, 2]
    assert 'mAP_75' in line['test']
    assert ('teacher/mAP' in line['test']) == (arm != 'baseline')
    if arm == 'features':
        found = line['val'][-1]['gradients']
        assert found['head.distill'] == 0 < found['head.detection']
        assert found['head.teacher'] == 0 < found['features.teacher']  # what the arm is about
        assert found['features.distill'] > 0
    where.train_alone(data, where.name_of(cell), cell)
    assert len(where.RESULTS.read_text().splitlines()) == 1
    assert not (where.WORK_DIRS / where.name_of(cell)).exists()


@pytest.mark.parametrize('is_written', [False, True])
def test_a_killed_cell_goes_on_and_ends_as_if_it_had_not(data, elsewhere, monkeypatch, is_written):
    cell = {**TINY, 'arm': 'ratio-0.25', 'epochs': 3}
    whole = where.train(data, cell, elsewhere / 'whole')
    end = RecordHook.after_val_epoch

    def killed(self, runner, metrics=None):
        if is_written or runner.epoch < 2:
            end(self, runner, metrics)
        if runner.epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RecordHook, 'after_val_epoch', killed)
        with pytest.raises(KeyboardInterrupt):
            where.train(data, cell, elsewhere / 'killed')
    resumed = where.train(data, cell, elsewhere / 'killed')
    for run in (whole, resumed):
        assert [x.pop('cpu_seconds') >= 0 for x in run['val']] == [True] * 3
    if not is_written:  # the gradients of that epoch are lost
        assert whole['val'][1].pop('gradients')
        assert whole['val'][1].pop('distill_coef')
    assert resumed['val'] == whole['val']
    assert resumed['test'] == whole['test']


def test_a_cell_starts_from_a_backbone_that_has_learned_other_classes(data, elsewhere, monkeypatch):
    monkeypatch.setattr(where, 'BASE', TINY)
    cell = {**TINY, 'classes': 'second', 'start': 'first', 'lr': 0.0}
    where.train(data, cell, elsewhere / 'run')
    name = 'backbone.layer3.0.conv1.weight'
    first, run = (
        torch.load(path, weights_only=False)['state_dict']
        for path in (data / 'first.pth', elsewhere / 'run/epoch_2.pth')
    )
    assert torch.equal(run[name], first[name])
    assert len(run['bbox_head.retina_cls.bias']) == 3 * len(where.CLASSES) / 2


def test_all_cells_have_their_own_names_and_known_settings():
    plan = [cell for cells in where.PLANS.values() for cell in cells]
    for cell in plan:
        assert cell.keys() == where.BASE.keys()
        assert cell['arm'] in ('baseline', *where.ARMS)
        assert cell['data'] in where.SCALES
    names = {json.dumps(cell): where.name_of(cell) for cell in plan}
    assert len(names) == len({*names.values()})


def test_the_list_has_each_cells_ap_and_gain(elsewhere, capsys):
    lines = [
        {'cell': {**TINY, 'arm': x}, 'test': dict(mAP=y)}
        for x, y in (('baseline', 0.3), ('sssd', 0.25))
    ]
    where.RESULTS.write_text('\n'.join(map(json.dumps, lines)))
    cells = [{**TINY, 'arm': x} for x in ('baseline', 'sssd', 'detach')]
    where.show({where.name_of(x): x for x in cells})
    rows = [row.split()[:-1] for row in capsys.readouterr().out.splitlines()]
    assert rows == [['30.0'], ['25.0', '-5.0'], []]


def test_gradients_are_by_loss_and_part():
    x, y = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([3.0], requires_grad=True)
    losses = dict(
        loss_cls=[3 * x.sum(), y.sum()], loss_distill=x[0] * 2, acc=x.sum(), **{'teacher.loss': y}
    )
    found = {
        name: gradients(total, dict(first=[x], second=[y]))
        for name, total in by_origin(losses).items()
    }
    assert found['detection']['first'].tolist() == [3, 3]
    assert found['detection']['second'].tolist() == [1]
    assert found['teacher']['first'].tolist() == [0, 0]
    assert found['distill']['first'].tolist() == [2, 0]
