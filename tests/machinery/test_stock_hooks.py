"""Hooks of mmengine's and mmdet's do to a distilled detector what they do to it alone."""

import copy
from types import SimpleNamespace

import pytest
import torch
from mmdet.engine.hooks import (
    NumClassCheckHook,
    SetEpochInfoHook,
    YOLOXModeSwitchHook,
)
from mmdet.registry import MODELS
from mmengine.hooks import Hook
from mmengine.logging import MMLogger

from mmdet_sssd.runs import load_from_local

from ..stock_detectors import NUM_CLASSES, demo_batch, stock_config
from ..toy_detector import ToyDetector
from .stock_and_distilled import (
    CLASSES,
    TRAIN_PIPELINE,
    distilled,
    small_runner,
    student_config,
    write_images,
)

LARGER_IMAGES = [*TRAIN_PIPELINE[:2], dict(type='Resize', scale=(96, 96)), TRAIN_PIPELINE[2]]
HOOKS = [
    dict(
        type='EMAHook',
        ema_type='ExpMomentumEMA',
        momentum=0.1,
        update_buffers=True,
        priority='ABOVE_NORMAL',
    ),
    dict(type='PipelineSwitchHook', switch_epoch=1, switch_pipeline=LARGER_IMAGES),
    dict(type='EarlyStoppingHook', monitor='coco/bbox_mAP', min_delta=2.0, patience=2),
    dict(type='NumClassCheckHook'),
    dict(type='CheckInvalidLossHook', interval=1),
    dict(type='SyncNormHook'),
]


class Recorder(Hook):
    """Notes the sizes of the images, what validation found, and the weights it was run with."""

    priority = 'LOWEST'

    def __init__(self):
        self.sizes, self.metrics, self.validated = [], [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.sizes.append([tuple(x.shape[-2:]) for x in data_batch['inputs']])

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        student = getattr(runner.model, 'student', runner.model)
        self.validated.append(student.bbox_head.retina_cls.weight.detach().clone())

    def after_val_epoch(self, runner, metrics=None):
        self.metrics.append(metrics)


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('images'))


@pytest.fixture(scope='module')
def both_runs(images, tmp_path_factory):
    """The same training with all of the hooks, of a stock and a distilled detector."""
    runs = {}
    for name, model in (('stock', student_config()), ('distilled', distilled(student_config()))):
        folder = tmp_path_factory.mktemp(name)
        recorder = Recorder()
        runner = small_runner(
            folder,
            images,
            model,
            epochs=5,
            custom_hooks=[*HOOKS, recorder],
            default_hooks=dict(
                visualization=dict(
                    type='DetVisualizationHook', draw=True, interval=1, score_thr=0.0
                )
            ),
        )
        runner.train()
        runs[name] = SimpleNamespace(folder=folder, runner=runner, recorder=recorder)
    return runs['stock'], runs['distilled']


def checkpoint(run):
    return load_from_local(str(run.folder / f'epoch_{run.runner.epoch}.pth'))


@pytest.mark.parametrize('key', ['state_dict', 'ema_state_dict'])
def test_averaged_weights_are_the_stock_run_s(both_runs, key):
    stock, ours = (checkpoint(run)[key] for run in both_runs)
    prefix = 'module.' if key == 'ema_state_dict' else ''
    weights = {k.removeprefix(prefix): v for k, v in stock.items() if k != 'steps'}
    assert len(weights) > 100
    for name, value in weights.items():
        assert torch.equal(ours[f'{prefix}student.{name}'], value), name
    if prefix:
        assert ours['steps'] == stock['steps'] > 0


def test_validation_runs_with_the_averaged_weights(both_runs):
    stock, ours = both_runs
    assert len(ours.recorder.validated) == len(stock.recorder.validated)
    for x, y in zip(ours.recorder.validated, stock.recorder.validated, strict=True):
        assert torch.equal(x, y)
    # The checkpoint's state_dict is the averaged one, and the model has its own weights back.
    key = 'student.bbox_head.retina_cls.weight'
    assert torch.equal(ours.recorder.validated[-1], checkpoint(ours)['state_dict'][key])
    assert not torch.equal(
        ours.recorder.validated[-1], ours.runner.model.student.bbox_head.retina_cls.weight
    )


def test_metrics_and_early_stopping_are_the_stock_run_s(both_runs):
    stock, ours = both_runs
    assert ours.recorder.metrics == stock.recorder.metrics
    assert ours.runner.epoch == stock.runner.epoch == 3  # of 5: no better for 2 epochs


def test_the_pipeline_switches_when_the_stock_run_s_does(both_runs):
    stock, ours = both_runs
    assert ours.recorder.sizes == stock.recorder.sizes
    assert ours.recorder.sizes == [[(64, 64)] * 2] * 2 + [[(96, 96)] * 2] * 4


def both(student):
    """A stock detector and a distilled detector with the same weights, in training mode."""
    stock = MODELS.build(student)
    model = MODELS.build(distilled(student))
    stock.init_weights()
    model.student.load_state_dict(stock.state_dict())
    return stock.train(), model.train()


def runner_of(model, classes=CLASSES):
    """What the hooks that are called below read off a runner."""
    dataset = SimpleNamespace(
        metainfo=dict(classes=classes), update_skip_type_keys=lambda keys: None
    )
    return SimpleNamespace(
        model=model,
        train_dataloader=SimpleNamespace(dataset=dataset),
        val_dataloader=SimpleNamespace(dataset=dataset),
        logger=MMLogger.get_current_instance(),
        epoch=7,
        max_epochs=10,
        iter=0,
    )


@pytest.mark.parametrize('classes', [CLASSES, CLASSES[:2], (*CLASSES, 'd')])
@pytest.mark.parametrize('name', ['retinanet', 'mask_rcnn', 'cascade_rcnn', 'rtmdet'])
def test_class_counts_are_accepted_and_refused_as_of_the_stock_detector(name, classes):
    hook = NumClassCheckHook()
    for model in both(stock_config(name)):
        for check in (hook.before_train_epoch, hook.before_val_epoch):
            if len(classes) == NUM_CLASSES:
                check(runner_of(model, classes))
            else:
                with pytest.raises(AssertionError, match=r'`num_classes` \(3\) in'):
                    check(runner_of(model, classes))


def test_yolox_switches_to_its_l1_loss():
    stock, model = both(stock_config('yolox'))
    hook_of = {m: YOLOXModeSwitchHook(num_last_epochs=2) for m in (stock, model)}
    data = demo_batch(stock)
    for switched in (False, True):
        if switched:
            for m, hook in hook_of.items():
                hook.before_train_epoch(runner_of(m))
        expected = stock(**copy.deepcopy(data), mode='loss')
        losses = model(**copy.deepcopy(data), mode='loss')
        assert ('loss_l1' in expected) == switched
        ours = {key for key in losses if 'distill' not in key}
        assert ours == expected.keys()
        for key, value in expected.items():
            assert torch.equal(losses[key], value), key


def test_the_teacher_s_pass_switches_with_the_student_s():
    model = MODELS.build(dict(type='SSSDDistiller', student=stock_config('yolox'))).train()
    YOLOXModeSwitchHook(num_last_epochs=2).before_train_epoch(runner_of(model))
    assert 'teacher.loss_l1' in model(**demo_batch(model), mode='loss')


def test_the_epoch_reaches_the_student():
    class EpochDetector(ToyDetector):
        def set_epoch(self, epoch):
            self.epoch = epoch

    MODELS.register_module(name='EpochDetector', module=EpochDetector, force=True)
    for model in both(dict(type='EpochDetector')):
        SetEpochInfoHook().before_train_epoch(runner_of(model))
        assert getattr(model, 'student', model).epoch == 7
