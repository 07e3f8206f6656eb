"""What mmengine does around the training step, with a distilled detector in it."""

import copy

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing

from mmdet_sssd.recipes import gentle
from mmdet_sssd.runs import load_from_local

from ..distillers import assert_equal, build, losses_of
from ..small_runner import LOAD_IMAGE, LOAD_LABELS, PACK, small_runner
from ..stock_detectors import demo_batch, stock_config

SGD = dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=1e-4)
SETTINGS = {
    'accumulation': dict(accumulative_counts=2),
    'clipping by value': dict(clip_grad=dict(type='value', clip_value=0.01)),
    'clipping by norm': dict(clip_grad=dict(max_norm=0.1)),
}
LARGER_IMAGES = [LOAD_IMAGE, LOAD_LABELS, dict(type='Resize', scale=(96, 96)), PACK]
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
    """Notes the sizes of the images, and what validation found."""

    def __init__(self):
        self.sizes, self.metrics = [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.sizes.append({tuple(x.shape[-2:]) for x in data_batch['inputs']})

    def after_val_epoch(self, runner, metrics=None):
        self.metrics.append(metrics)


def stock_and_distilled(tmp_path, shapes, epochs, **settings):
    """Train a detector alone, and in a distiller whose losses weigh nothing."""
    model = dict(distill_coef=0.0, teacher_loss_weight=0.0)
    for name in ('stock', 'distilled'):
        runner = small_runner(
            tmp_path / name,
            shapes,
            model=model,
            distilled=name == 'distilled',
            train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=epochs),
            **copy.deepcopy(settings),
        )
        runner.register_hook(recorder := Recorder())
        runner.train()
        yield runner, recorder


@pytest.mark.parametrize('name', SETTINGS)
def test_without_distillation_a_run_equals_the_stock_run_to_the_bit(name, shapes, tmp_path):
    wrapper = dict(optimizer=SGD, **SETTINGS[name])
    no_validation = dict.fromkeys(('val_dataloader', 'val_evaluator', 'val_cfg'))
    runs = stock_and_distilled(tmp_path, shapes, 1, optim_wrapper=wrapper, **no_validation)
    (stock, _), (ours, _) = runs
    assert_equal(dict(ours.model.student.state_dict()), dict(stock.model.state_dict()))


@pytest.mark.parametrize('name', SETTINGS)
def test_where_the_teacher_does_not_lead_the_gentle_recipe_is_stock_training(
    name, shapes, tmp_path
):
    phases = {**gentle.hooks['phases'], 'detach_student': 0.5, 'teacher_until': 0.5}
    hooks = {x: gentle.hooks[x] for x in ('distill_coef', 'clipping')} | dict(phases=phases)
    settings = dict(optim_wrapper=dict(optimizer=SGD, **SETTINGS[name]))
    stock = small_runner(tmp_path / 'stock', shapes, distilled=False, **copy.deepcopy(settings))
    stock.train()
    ours = small_runner(
        tmp_path / 'gentle', shapes, model=gentle.model, default_hooks=hooks, **settings
    )
    at_start = copy.deepcopy(dict(ours.model.teachers.state_dict()))
    ours.train()
    assert_equal(dict(ours.model.student.state_dict()), dict(stock.model.state_dict()))
    trained = ours.model.teachers.state_dict()
    assert all(not torch.equal(trained[x], at_start[x]) for x in at_start)
    norms = [x.message_hub.log_scalars.get('train/grad_norm') for x in (stock, ours)]
    assert (norms[0] is None) == (name != 'clipping by norm')
    if norms[0]:
        assert norms[0].data[0].tolist() == norms[1].data[0].tolist()
        assert norms[0].data[0].min() > 0.1  # it was clipped


def test_hooks_do_to_it_what_they_do_to_the_detector_alone(shapes, tmp_path):
    (stock, expected), (ours, found) = stock_and_distilled(tmp_path, shapes, 5, custom_hooks=HOOKS)
    assert found.metrics == expected.metrics  # of the averaged weights
    assert found.sizes == expected.sizes == [{(48, 96)}] * 2 + [{(96, 96)}] * 4
    assert ours.epoch == stock.epoch == 3  # of 5: no better for 2 epochs
    parts = ours.model.state_dict().keys()
    ours, stock = (load_from_local(f'{x.work_dir}/epoch_3.pth') for x in (ours, stock))
    for key, prefix in (('state_dict', ''), ('ema_state_dict', 'module.')):
        weights = {k.replace(f'{prefix}student.', prefix): v for k, v in ours[key].items()}
        assert len(stock[key]) > 100
        assert parts <= {k.removeprefix(prefix) for k in ours[key]}  # of teacher and term too
        assert_equal({k: weights[k] for k in stock[key]}, dict(stock[key]))


CHECKPOINTED = {
    'with_cp': [],
    'activation_checkpointing': ['backbone.layer2', 'backbone.layer4', 'bbox_head.cls_convs.0'],
}


@pytest.mark.parametrize('how', CHECKPOINTED)
def test_activation_checkpointing_changes_no_loss_and_no_gradient(how):
    student = stock_config('retinanet')
    student.backbone.with_cp = how == 'with_cp'
    plain, saving = build('retinanet'), build(student)
    turn_on_activation_checkpointing(saving, CHECKPOINTED[how])
    data = demo_batch(plain)
    results, kept = [], []
    for model in (plain, saving):
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
            losses = losses_of(model, data)
        total, logged = model.parse_losses(losses)
        total.backward()
        results.append((logged, {n: p.grad for n, p in model.named_parameters()}, len(kept)))
        kept.clear()
    (expected, expected_grads, many), (actual, grads, few) = results
    assert few < many
    assert actual == expected
    for name, grad in expected_grads.items():
        tolerance = 1e-5 * grad.abs().max().item()  # sums are taken in another order
        torch.testing.assert_close(grads[name], grad, rtol=1e-4, atol=tolerance, msg=name)
