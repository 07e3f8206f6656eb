"""What mmengine does around the training step, with a distilled detector in it."""

import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.hooks import Hook
from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing

from ..stock_detectors import demo_batch, stock_config
from ..toy_detector import toy_runner
from .stock_and_distilled import distilled, small_runner, student_config, write_images

SGD = dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=1e-4)
SETTINGS = {
    'accumulation': dict(optim_wrapper=dict(optimizer=SGD, accumulative_counts=2)),
    'clipping by value': dict(
        optim_wrapper=dict(optimizer=SGD, clip_grad=dict(type='value', clip_value=0.01))
    ),
    'clipping by norm': dict(optim_wrapper=dict(optimizer=SGD, clip_grad=dict(max_norm=0.1))),
    'auto_scale_lr': dict(auto_scale_lr=dict(enable=True, base_batch_size=16)),
}


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('images'))


@pytest.mark.parametrize('name', SETTINGS)
def test_without_distillation_a_run_equals_the_stock_run_to_the_bit(name, images, tmp_path):
    runners = []
    for folder, model in (('stock', student_config()), ('ours', distilled(student_config()))):
        settings = dict(
            val_dataloader=None, val_evaluator=None, val_cfg=None, **copy.deepcopy(SETTINGS[name])
        )
        runner = small_runner(tmp_path / folder, images, model, epochs=1, **settings)
        runner.train()
        runners.append(runner)
    stock, ours = runners
    for key, value in stock.model.state_dict().items():
        assert torch.equal(ours.model.student.state_dict()[key], value), key
    rates = {group['lr'] for runner in runners for group in runner.optim_wrapper.param_groups}
    assert rates == {0.02 * 2 / 16 if name == 'auto_scale_lr' else 0.02}


class Progress(Hook):
    def __init__(self):
        self.coefs, self.backbone = [], []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.coefs.append(runner.model.terms['distill'].distill_coef)
        self.backbone.append(runner.model.student.backbone.weight.sum().item())


def test_phases_and_distill_coef_count_iterations_under_accumulation(tmp_path):
    progress = Progress()
    runner = toy_runner(
        tmp_path,
        hooks=[
            dict(type='DistillPhasesHook', freeze_backbone=1 / 3),
            dict(type='AdaptiveDistillCoefHook'),
            progress,
        ],
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=12),
        schedulers=[dict(type='MultiStepLR', by_epoch=False, milestones=[7], gamma=0.1)],
        optim_wrapper=dict(
            type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1), accumulative_counts=2
        ),
    )
    initial = runner.model.student.backbone.weight.sum().item()
    runner.train()
    moved = [x != y for x, y in zip(progress.backbone, [initial, *progress.backbone], strict=False)]
    assert moved == [False] * 4 + [False, True] * 4
    assert progress.coefs == [2.0] * 7 + [4.0] * 5


CHECKPOINTED = {
    'with_cp': [],
    'activation_checkpointing': ['backbone.layer2', 'backbone.layer4', 'bbox_head.cls_convs.0'],
}


@pytest.mark.parametrize('how', CHECKPOINTED)
def test_activation_checkpointing_changes_no_loss_and_no_gradient(how):
    torch.manual_seed(2)
    plain = MODELS.build(dict(type='SSSDDistiller', student=stock_config('retinanet'))).train()
    student = stock_config('retinanet')
    student.backbone.with_cp = how == 'with_cp'
    saving = MODELS.build(dict(type='SSSDDistiller', student=student)).train()
    saving.load_state_dict(plain.state_dict())
    turn_on_activation_checkpointing(saving, CHECKPOINTED[how])
    data = demo_batch(plain)
    results, kept = [], []
    for model in (plain, saving):
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
            losses = model(**copy.deepcopy(data), mode='loss')
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
