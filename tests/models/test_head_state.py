"""Passes that leave no trace: all that a head holds, norms too, is as before."""

import copy
import functools
import logging
import random
from collections import deque

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import nn

from ..distillers import TOY, assert_equal, build, losses_of
from ..stock_detectors import demo_batch
from ..toy_detector import ToyDetector

LOGGER = logging.getLogger(__name__)


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
        """All of it, as text; of generators, the numbers that they draw next."""
        generators = copy.deepcopy({k: x for k, x in vars(self).items() if 'random' in k})
        drawn = [torch.rand(1, generator=generators.pop('torch_random')).item()]
        drawn += [x.random() for x in generators.values()]
        return drawn, {k: repr(x) for k, x in vars(self).items() if 'random' not in k}


class Helper:
    def __init__(self):
        self.own = Tally()
        self.helper = Tally()


@MODELS.register_module()
class TallyingDetector(ToyDetector):
    """A ToyDetector whose loss changes what lies on it, on its head, on a helper of it, and deeper."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        head = self.bbox_head
        head.norm = nn.BatchNorm2d(8)
        head.helper, head.__dict__['tally'] = Helper(), Tally()
        head.listed, self.own = [Tally()], Tally()

    def tallies(self):
        head = self.bbox_head
        return [self.own, head.tally, head.helper.own, head.helper.helper, head.listed[0]]

    def loss(self, batch_inputs, batch_data_samples):
        (x,) = self.extract_feat(batch_inputs)
        for tally in self.tallies():
            tally.step()
        self.bbox_head.steps = getattr(self.bbox_head, 'steps', 0) + 1
        return dict(loss_cls=(self.bbox_head.conv(self.bbox_head.norm(x)) - 1).square().mean())


CONFIG = dict(TOY, type='TallyingDetector')


@pytest.mark.parametrize('loss_weight', [1.0, 0.0])
def test_whatever_a_head_and_its_helpers_hold_is_as_after_one_stock_step(loss_weight):
    model = build(CONFIG, teacher_loss_weight=loss_weight)
    stock, inside = copy.deepcopy(model.student), model.student.tallies()
    for step in (1, 2):
        losses_of(stock)
        losses = losses_of(model)
        assert ('teacher.loss_cls' in losses) == (loss_weight > 0)
        for ours, theirs in zip(model.student.tallies(), stock.tallies(), strict=True):
            assert ours.contents() == theirs.contents()
        assert model.student.bbox_head.steps == step
        buffers = (dict(x.bbox_head.named_buffers()) for x in (model.student, stock))
        assert_equal(*buffers)
    assert all(x is y for x, y in zip(model.student.tallies(), inside, strict=True))


def test_an_error_undoes_too_and_autograd_s_tensors_stay():
    model = build(CONFIG)
    detector, loss = model.student, model.student.loss
    before, running_means = [x.contents() for x in detector.tallies()], []

    def failing(*args):
        running_means.append(detector.bbox_head.norm.running_mean)
        losses = loss(*args)
        if len(running_means) == 2:
            raise RuntimeError('out of memory')
        before[:] = [x.contents() for x in detector.tallies()]
        return losses

    detector.loss = failing
    with pytest.raises(RuntimeError, match='out of memory'):
        losses_of(model)
    assert [x.contents() for x in detector.tallies()] == before
    assert detector.tallies()[0].count == 1
    assert detector.bbox_head.norm.running_mean is running_means[0]
    assert running_means[1] is not running_means[0]  # autograd may hold it


def test_singletons_are_not_copied():
    """A logger's copy is the logger itself: nothing is to be hung into that."""
    model = build(CONFIG)
    model.student.bbox_head.callback = functools.partial(LOGGER.debug, 'x')
    loggers = (LOGGER, logging.getLogger())
    before = [{name: id(value) for name, value in vars(x).items()} for x in loggers]
    losses_of(model)
    assert model.student.bbox_head.helper.own.logger is LOGGER
    assert [{name: id(value) for name, value in vars(x).items()} for x in loggers] == before


class NormedHead(nn.Module):
    """Has a norm that learns, and one that is frozen in training, as in stock's ``norm_eval``."""

    num_classes = 2

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.frozen = nn.Conv2d(8, 1, 1), *map(nn.BatchNorm2d, (8, 8))

    def train(self, mode=True):
        super().train(mode)
        self.frozen.eval()
        return self


@MODELS.register_module()
class NormedDetector(ToyDetector):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.bbox_head = NormedHead()

    def predict(self, batch_inputs, batch_data_samples, rescale=True):
        (x,), head = self.extract_feat(batch_inputs), self.bbox_head
        self.seen = x, head.norm(x), head.frozen(x), head.norm(x[:1, :, :1, :1])
        return batch_data_samples


def test_head_norms_use_the_batch_unless_frozen_or_one_pixel():
    """To predict on the teacher's features in eval mode changes nothing."""
    model = build({**TOY, 'type': 'NormedDetector'}).eval()
    for norm in (model.bbox_head.norm, model.bbox_head.frozen):
        norm.running_mean.fill_(3.0)  # of features unlike the teacher's
    before, data = copy.deepcopy(model.state_dict()), demo_batch(model)
    with torch.no_grad():
        model.predict_with_teacher('teacher', *data.values(), rescale=False)
        feats = model.extract_feat(data['inputs'])
        taught = model.teachers['teacher'].neck(feats, *data.values())
    assert_equal(dict(model.state_dict()), dict(before))
    assert not any(module.training for module in model.modules())
    x, normed, frozen, pixel = model.student.seen
    assert_equal(x, taught[0])
    torch.testing.assert_close(normed, F.batch_norm(x, None, None, training=True))
    by_running_statistics = (x - 3) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(frozen, by_running_statistics)
    torch.testing.assert_close(pixel, by_running_statistics[:1, :, :1, :1])
