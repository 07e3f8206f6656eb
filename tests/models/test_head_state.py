"""A pass that leaves no trace: whatever a head holds is as before it."""

import copy
import functools
import logging
import random
from collections import deque

import numpy as np
import pytest
import torch
from mmdet.models.task_modules.assigners import MaxIoUAssigner
from mmdet.registry import MODELS, TASK_UTILS
from torch import nn

from mmdet_sssd.models.replay import given_feats, state_restored

from ..stock_detectors import demo_batch, stock_config
from ..toy_detector import ToyDetector

LOGGER = logging.getLogger(__name__)
FEATS = (torch.ones(1, 8, 4, 4),)


@TASK_UTILS.register_module()
class CountingAssigner(MaxIoUAssigner):
    """A user's own, of no package that is known."""

    num_calls = 0

    def assign(self, *args, **kwargs):
        self.num_calls += 1
        return super().assign(*args, **kwargs)


@pytest.mark.parametrize('loss_weight', [1.0, 0.0])
def test_an_assigner_of_a_user_s_own_counts_the_student_s_calls_alone(loss_weight):
    config = stock_config('retinanet')
    config.train_cfg.assigner.type = 'CountingAssigner'
    stock = MODELS.build(config)
    model = MODELS.build(
        dict(type='SSSDDistiller', student=config, teacher_loss_weight=loss_weight)
    )
    data = demo_batch(stock)
    for _ in range(2):
        for detector in (stock, model):
            detector(**copy.deepcopy(data), mode='loss')
    assert stock.bbox_head.assigner.num_calls == 4  # one for each image
    assert model.student.bbox_head.assigner.num_calls == 4


class Tally:
    """What a helper of a head may hold; ``step`` changes all of it in place."""

    def __init__(self):
        self.nested = [[1], {'a': [2]}, (3, [4])]
        self.arrays = {'x': np.zeros(2), 'deep': {'y': np.ones((2, 2))}}
        self.recent = deque([0.0], maxlen=2)
        self.seen = {0}
        self.tensor = torch.zeros(2)
        self.torch_random = torch.Generator().manual_seed(1)
        self.numpy_random = np.random.default_rng(1)
        self.old_numpy_random = np.random.RandomState(1)
        self.python_random = random.Random(1)
        self.count = 0
        self.alias = self.nested
        self.logger = LOGGER

    def step(self):
        self.nested[0].append(self.count)
        self.nested[1]['a'][0] += 1
        self.nested[2][1].append(5)
        self.nested.append('new')
        self.arrays['x'] += 1
        self.arrays['deep']['y'] *= 2
        self.arrays['new'] = np.zeros(1)
        self.recent.append(float(torch.rand(1, generator=self.torch_random)))
        self.recent.append(self.numpy_random.random())
        self.recent.append(self.old_numpy_random.random() + self.python_random.random())
        self.seen.add(self.count + 10)
        self.tensor += 1
        self.count += 1
        self.added_later = self.count
        assert self.alias is self.nested

    def contents(self):
        return dict(
            nested=copy.deepcopy(self.nested),
            x=self.arrays['x'].tolist(),
            y=self.arrays['deep']['y'].tolist(),
            keys=[*self.arrays],
            recent=[*self.recent],
            seen=sorted(self.seen),
            tensor=self.tensor.tolist(),
            torch_random=self.torch_random.get_state().tolist(),
            numpy_random=self.numpy_random.bit_generator.state,
            old_numpy_random=self.old_numpy_random.get_state()[1].tolist(),
            python_random=self.python_random.getstate(),
            names=sorted(vars(self)),
        )


class Helper:
    def __init__(self):
        self.own = Tally()
        self.helper = Tally()


@MODELS.register_module()
class TallyingDetector(ToyDetector):
    """A ToyDetector whose loss changes what lies on its head, on a helper of it, and deeper."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        head = self.bbox_head
        head.norm = nn.BatchNorm2d(8)
        head.helper, head.__dict__['tally'] = Helper(), Tally()
        head.listed = [Tally()]

    def tallies(self):
        head = self.bbox_head
        return [head.tally, head.helper.own, head.helper.helper, head.listed[0]]

    def loss(self, batch_inputs, batch_data_samples):
        (x,) = self.extract_feat(batch_inputs)
        for tally in self.tallies():
            tally.step()
        self.bbox_head.steps = getattr(self.bbox_head, 'steps', 0) + 1
        return dict(loss_cls=(self.bbox_head.conv(self.bbox_head.norm(x)) - 1).square().mean())


def tallying_detector():
    torch.manual_seed(0)
    return TallyingDetector(data_preprocessor=dict(type='DetDataPreprocessor')).train()


def test_whatever_a_head_and_its_helpers_hold_is_as_after_one_stock_step():
    stock = tallying_detector()
    config = dict(type='TallyingDetector', data_preprocessor=dict(type='DetDataPreprocessor'))
    model = MODELS.build(dict(type='SSSDDistiller', student=config)).train()
    model.student.load_state_dict(stock.state_dict())
    inside = model.student.tallies()
    data = demo_batch(stock)
    for step in (1, 2):
        stock(**copy.deepcopy(data), mode='loss')
        losses = model(**copy.deepcopy(data), mode='loss')
        assert losses['teacher.loss_cls'] > 0
        pairs = zip(model.student.tallies(), stock.tallies(), strict=True)
        for ours, theirs in pairs:
            assert ours.contents() == theirs.contents()
        assert model.student.bbox_head.steps == step
        for key, value in stock.bbox_head.named_buffers():
            assert torch.equal(model.student.bbox_head.get_buffer(key), value), key
    assert all(x is y for x, y in zip(model.student.tallies(), inside, strict=True))


def test_the_context_works_on_copies_and_an_error_undoes_too():
    detector = tallying_detector()
    before = [x.contents() for x in detector.tallies()]
    running_mean = detector.bbox_head.norm.running_mean

    def fail():
        detector.loss(None, None)
        assert detector.bbox_head.helper.own.count == 1
        assert detector.bbox_head.norm.running_mean is not running_mean  # autograd may hold it
        raise RuntimeError('out of memory')

    with (
        pytest.raises(RuntimeError, match='out of memory'),
        given_feats(detector, FEATS),
        state_restored(detector),
    ):
        fail()
    assert [x.contents() for x in detector.tallies()] == before
    assert detector.bbox_head.norm.running_mean is running_mean
    assert not running_mean.any()


def test_singletons_are_not_copied():
    """A logger's copy is the logger itself: nothing is to be hung into that."""
    detector = tallying_detector()
    detector.bbox_head.callback = functools.partial(LOGGER.debug, 'x')
    before = {name: id(value) for name, value in vars(LOGGER).items()}
    root = {name: id(value) for name, value in vars(logging.getLogger()).items()}
    with given_feats(detector, FEATS), state_restored(detector):
        detector.loss(None, None)
        assert detector.bbox_head.helper.own.logger is LOGGER
    assert {name: id(value) for name, value in vars(LOGGER).items()} == before
    assert {name: id(value) for name, value in vars(logging.getLogger()).items()} == root


def test_a_trace_is_left_otherwise():
    detector = tallying_detector()
    with given_feats(detector, FEATS):
        detector.loss(None, None)
    assert [x.count for x in detector.tallies()] == [1] * 4
