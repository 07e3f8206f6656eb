"""Hooks of mmdet's find in a distilled detector what they look for in it alone."""

import copy
from types import SimpleNamespace

import pytest
from mmdet.engine.hooks import NumClassCheckHook, SetEpochInfoHook, YOLOXModeSwitchHook
from mmengine.logging import MMLogger

from .. import toy_detector  # noqa: F401  (registers ToyDetector)
from ..distillers import TOY, assert_equal, build, losses_of
from ..stock_detectors import NUM_CLASSES, demo_batch


def runner_of(model, classes=()):
    """What these hooks read off a runner."""
    dataset = SimpleNamespace(metainfo=dict(classes=classes), update_skip_type_keys=lambda _: None)
    return SimpleNamespace(
        model=model,
        train_dataloader=SimpleNamespace(dataset=dataset),
        val_dataloader=SimpleNamespace(dataset=dataset),
        logger=MMLogger.get_current_instance(),
        epoch=7,
        max_epochs=10,
        iter=0,
    )


@pytest.mark.parametrize('name', ['retinanet', 'cascade_rcnn'])
def test_another_number_of_classes_is_refused(name):
    model, hook = build(name), NumClassCheckHook()
    for check in (hook.before_train_epoch, hook.before_val_epoch):
        check(runner_of(model, tuple('abc')))
        for classes in ('ab', 'abcd'):
            with pytest.raises(AssertionError, match=rf'`num_classes` \({NUM_CLASSES}\) in'):
                check(runner_of(model, tuple(classes)))


def test_yolox_switches_to_its_l1_loss_in_both_passes():
    model = build('yolox')
    stock, data = copy.deepcopy(model.student), demo_batch(model)
    assert not {'loss_l1', 'teacher.loss_l1'} & losses_of(copy.deepcopy(model), data).keys()
    for x in (stock, model):
        YOLOXModeSwitchHook(num_last_epochs=2).before_train_epoch(runner_of(x))
    expected, losses = losses_of(stock, data), losses_of(model, data)
    assert {'loss_l1', 'teacher.loss_l1'} <= losses.keys()
    assert_equal({key: losses[key] for key in expected}, expected)


def test_the_epoch_reaches_the_student():
    model, epochs = build(TOY), []
    model.student.set_epoch = epochs.append
    SetEpochInfoHook().before_train_epoch(runner_of(model))
    assert epochs == [7]
