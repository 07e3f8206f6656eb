"""What the tests run on each of two processes, and alone to compare with."""

import copy
import os
from datetime import timedelta
from types import SimpleNamespace
from unittest.mock import Mock, patch

import torch
import torch.distributed as dist
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.hooks import Hook
from mmengine.model import BaseModule, MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.runner import BaseLoop

from mmdet_sssd import ConfigError
from mmdet_sssd.hooks.model_parts import bare_model
from mmdet_sssd.runs import SafeCheckpointHook

from ..distillers import ADL, SSIM, TOY, pretrained, without_gradient
from ..hooks.test_distill_phases_hook import Losses
from ..hooks.test_ratio_of_gradients import norms
from ..runs.stock_runs import make_runner
from ..runs.test_preemption_hook import distilled, handlers_kept
from ..stock_detectors import NUM_CLASSES, stock_config
from ..toy_detector import NUM_IMAGES, toy_loader, toy_runner

IMAGE_SIZE = (160, 160)  # GroupNorm wants more than a pixel on the last level
WRAPPER = dict(
    type='MMDistributedDataParallel',
    device_ids=None,
    broadcast_buffers=False,
    find_unused_parameters=False,
)


def join_group(rank: int, store: str) -> None:
    """Make this process one of two."""
    torch.set_num_threads(1)
    BaseModule._dump_init_info = lambda *_: None
    register_all_modules()
    os.environ['LOCAL_RANK'] = str(rank)
    dist.init_process_group(
        'gloo',
        init_method=f'file://{store}',
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )


def inputs(num_items, **kwargs) -> dict:
    """Make a batch with so many objects in each image."""
    shapes = [[3, *IMAGE_SIZE]] * len(num_items)
    return demo_mm_inputs(
        len(shapes), shapes, num_items=num_items, num_classes=NUM_CLASSES, **kwargs
    )


def build(name, **settings):
    """Build the same distiller on every process, its backbone's statistics fixed."""
    student = stock_config(name)
    student.backbone.norm_eval = True
    torch.manual_seed(0)
    return MODELS.build({'type': 'SSSDDistiller', 'student': student, **settings}).train()


def build_with_terms(name):
    """Build a distiller with terms, and a teacher that is sure of something."""
    model = build(
        name,
        teacher_head_grad={'conv_cls': 0, '': 0.5},
        teachers=dict(large=pretrained(stock_config(name))),
        terms=dict(ssim=SSIM | dict(teacher='large'), adl=ADL | dict(teacher='large')),
    )
    torch.nn.init.zeros_(model.teachers['large'].detector.bbox_head.conv_cls.bias)
    return model


def build_semi(name):
    """Build a semi-supervised distiller whose teacher is hardly sure of anything."""
    teacher = stock_config(name)
    teacher.test_cfg.score_thr = 0.0
    settings = dict(teachers=dict(large=pretrained(teacher)), terms=dict(adl=ADL))
    return build(name, type='SemiDistiller', **settings)


def watched(distiller):
    """Wrap a distiller for training steps; a parameter without gradient makes the next one fail.

    The list beside the optimizer will have the names of parameters without a gradient in any step.
    """
    model = MMDistributedDataParallel(distiller, broadcast_buffers=False)
    optim_wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-4))
    without = []
    update = optim_wrapper.backward

    def backward(loss, **kwargs):
        update(loss, **kwargs)
        without.extend(without_gradient(model))

    optim_wrapper.backward = backward
    return model, optim_wrapper, without


def train_on_pseudo_boxes(name, thresholds):
    """Train a step for each least score of a pseudo box, and one more; gives their numbers too."""
    model, optim_wrapper, without = watched(build_semi(name))
    counts = []
    for threshold in [*thresholds, 1.0]:
        model.module.pseudo_score_thr = threshold
        data = inputs([2, 0])
        branches = {
            key: {'sup': [first, None], 'unsup': [None, second]}
            for key, (first, second) in data.items()
        }
        counts.append(model.train_step(branches, optim_wrapper)['unsup.pseudo_boxes'].item())
    return without, counts


def semi_step(name, labelled, unlabelled):
    """Train a step on those of two images with labels, and of two without, that this process has.

    Gives the losses, the gradients averaged over the processes, and the weights after the step.
    """
    model = build_semi(name)
    model.pseudo_score_thr = 0.0
    branches = {}
    for branch, images, seed in (('sup', labelled, 1), ('unsup', unlabelled, 2)):
        torch.manual_seed(seed)
        for key, items in inputs([4, 2]).items():
            branches.setdefault(key, {})[branch] = [items[i] for i in images]
    data = model.data_preprocessor(branches, True)
    assert set(data['inputs']) == {x for x in branches['inputs'] if branches['inputs'][x]}
    wrapped = model
    if dist.is_initialized():
        wrapped = MMDistributedDataParallel(model, broadcast_buffers=False)
    losses = wrapped(**data, mode='loss')
    total, _ = model.parse_losses(losses)
    total.backward()
    gradients = {name: x.grad.clone() for name, x in model.named_parameters() if x.requires_grad}
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    flat = {k: sum(x) if isinstance(x, list) else x for k, x in losses.items() if 'loss' in k}
    return {k: x.detach() for k, x in flat.items()}, gradients, dict(model.state_dict())


def train_on_counts(name, counts):
    """Train a step for each number of objects in the batch and phase."""
    model, optim_wrapper, without = watched(build(name))
    for first_phase in (True, False):
        model.module.terms['distill'].detach_student = first_phase
        for count in counts:
            data = inputs([count], with_mask=name == 'mask_rcnn')
            model.train_step(data, optim_wrapper)
    return without


def gradients(name, images, with_terms=False):
    """Gradients on some of two images, averaged over the processes, in float64."""
    torch.set_default_dtype(torch.float64)
    try:
        model = build_with_terms(name) if with_terms else build(name)
        data = {key: [items[i] for i in images] for key, items in inputs([4, 1]).items()}
        data = model.data_preprocessor(data, True)
        data['inputs'] = data['inputs'].double()
        wrapped = MMDistributedDataParallel(model) if dist.is_initialized() else model
        total, _ = model.parse_losses(wrapped(**data, mode='loss'))
        total.backward()
    finally:
        torch.set_default_dtype(torch.float32)
    return {name: x.grad for name, x in model.named_parameters() if x.requires_grad}


def chosen_to_resume(work_dir, resume=True, restarts='0'):
    """Give what a run in a folder is resumed from, or why it cannot be."""
    paths = dict(_load_from=None, work_dir=work_dir, cfg={})
    runner = SimpleNamespace(_resume=resume, _train_loop=Mock(BaseLoop), **paths)
    try:
        with patch.dict(os.environ, TORCHELASTIC_RESTART_COUNT=restarts):
            SafeCheckpointHook().before_run(runner)
    except ConfigError as error:
        return str(error)
    assert runner._resume == (runner._load_from is not None)
    return runner._load_from


def toy_run(work_dir, epochs, hooks, resume_from=None, **settings):
    """Train a distilled toy detector, on both processes if there are two, or go on with a run."""
    if dist.is_initialized():
        settings |= dict(launcher='pytorch', cfg=dict(model_wrapper_cfg=WRAPPER))
    runner = toy_runner(
        work_dir,
        hooks=hooks,
        epochs=epochs,
        resume=resume_from is not None,
        load_from=resume_from,
        **settings,
    )
    runner.train()
    return runner


class Recorder(Hook):
    """Notes, for each iteration, the epoch, λ, whether the student is detached, and what moved."""

    priority = 'LOWEST'

    def __init__(self):
        self.rows = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.before = copy.deepcopy(bare_model(runner).state_dict())

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        model = bare_model(runner)
        moved = {k for k, x in model.state_dict().items() if not torch.equal(x, self.before[k])}
        term = model.terms['distill']
        self.rows.append((runner.epoch, term.distill_coef, term.detach_student, moved))


def run_phases(work_dir, resume_from=None):
    """Train six epochs: backbone frozen for 2, student detached for 3, learning rate drops after 4."""
    hooks = [
        dict(type='AdaptiveDistillCoefHook'),
        dict(type='DistillPhasesHook', detach_student=1 / 2, freeze_backbone=1 / 3),
        dict(type='RandomStateHook'),
        recorder := Recorder(),
    ]
    drop = dict(type='MultiStepLR', milestones=[4], gamma=0.1)
    toy_run(work_dir, 6, hooks, resume_from, schedulers=[drop])
    return [(*row, 'student.backbone.weight' in moved) for *row, moved in recorder.rows]


def run_balanced(work_dir):
    """Train a few steps with a ratio of gradients, always on the same images, at no learning rate.

    Gives λ in each iteration, and the norms of this process's images alone: of the student's gradient
    and of the term's without λ.
    """
    coefs, found = [], []

    class Coefs(Hook):
        priority = 'LOWEST'

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            model = runner.model.module
            coefs.append(model.terms['distill'].distill_coef)
            found.append([x.item() for x in norms(model, data_batch)])

    toy_run(
        work_dir,
        3,
        [dict(type='AdaptiveDistillCoefHook', ratio=0.5), Coefs()],
        train_dataloader=toy_loader(shuffle=False) | dict(batch_size=NUM_IMAGES // 2),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)),
    )
    return coefs, found


def run_taught(work_dir, checkpoint):
    """Train two epochs with a pretrained teacher and an average of the weights."""
    teacher = pretrained() | dict(checkpoint=checkpoint)
    model = dict(type='Distiller', student=TOY, teachers=dict(large=teacher), terms=dict(ssim=SSIM))
    model = toy_run(work_dir, 2, [dict(type='EMAHook', momentum=0.5)], model=model).model.module
    teacher = model.teachers['large']
    assert not any(x.training for x in teacher.modules())
    return dict(weights=dict(model.state_dict()), teacher=dict(teacher.detector.state_dict()))


def teacher_moves(recorder):
    """Tell for each iteration whether anything but the student moved."""
    return [any(not key.startswith('student.') for key in row[-1]) for row in recorder.rows]


def run_leading(work_dir, of_teacher):
    """Train two epochs with a teacher that stops after the first if it does not lead.

    The log of this process has 1 for the student's losses, and ``of_teacher`` for the teacher's.
    """
    phases = dict(type='DistillPhasesHook', detach_student=1 / 2, teacher_must_lead=True)
    toy_run(work_dir, 2, [Losses(lambda _: of_teacher), phases, recorder := Recorder()])
    return teacher_moves(recorder)


def run_until(work_dir, until, resume_from=None):
    """Train two epochs with a teacher that stops; notes where it moves, and what DDP waits for."""
    hooks = [dict(type='DistillPhasesHook', teacher_until=until), recorder := Recorder()]
    runner = toy_run(work_dir, 2, hooks, resume_from)
    model = runner.model.module
    waited = sum(p.requires_grad for p in model.parameters())
    weights = dict(model.state_dict())
    return dict(weights=weights, moved=teacher_moves(recorder), waited=waited)


def run_until_signal(work_dir, loop, resume=False, signals=None) -> int:
    """Train 4 iterations an epoch, till a signal ends the run; gives the process's exit code."""
    runner = make_runner(
        work_dir,
        **distilled(loop, workers=1, batch_size=2),
        launcher='pytorch',
        cfg=dict(model_wrapper_cfg=WRAPPER),
        resume=resume,
        signals=signals,
    )
    with handlers_kept():
        try:
            runner.train()
        except SystemExit as exit:
            return exit.code
    return 0
