"""Small runs with stock loops, samplers and hooks, and whether two went the same way to the bit."""

import json
import pickle
import random
from itertools import count
from pathlib import Path

import numpy as np
import torch
from mmdet.datasets import BaseDetDataset
from mmdet.registry import DATA_SAMPLERS, DATASETS, METRICS, MODELS, TRANSFORMS
from mmengine.dataset import InfiniteSampler
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from torch import nn

from mmdet_sssd.runs import load_from_local

from ..stock_detectors import stock_config
from ..tools import interruption  # noqa: F401  (registers SignalHook)
from ..tools.run_comparison import assert_equal_states, scalars
from ..toy_detector import ToyDetector, toy_runner

NUM_IMAGES, BATCH_SIZE, NUM_EPOCHS = 16, 4, 4
EPOCH = NUM_IMAGES // BATCH_SIZE  # iterations
LAST = NUM_EPOCHS * EPOCH
NUM_VAL_BATCHES = 4
RUNS = count()


class Killed(BaseException):
    """The process ends here; nothing that an ordinary error would set off is done."""


class KilledBefore(Hook):
    """Ends the run before an iteration, or in the validation before it."""

    priority = 'HIGHEST'

    def __init__(self, iteration, in_validation=False):
        self.moment = iteration, 'val' if in_validation else 'train'

    def _before_iter(self, runner, batch_idx, data_batch=None, mode='train'):
        if (runner.iter, mode) == self.moment:
            raise Killed


@DATASETS.register_module()
class UprightAndFlat(BaseDetDataset):
    """Images of two shapes, the even ones upright; an object each, of two classes."""

    METAINFO = dict(classes=('a', 'b'))

    def load_data_list(self):
        instance = dict(bbox=[4, 4, 20, 20], ignore_flag=0)
        return [
            dict(
                img_id=i,
                img_path=f'{i}.png',
                width=(32, 48)[i % 2],
                height=(48, 32)[i % 2],
                instances=[instance | dict(bbox_label=i // 3 % 2)],
            )
            for i in range(NUM_IMAGES)
        ]


@TRANSFORMS.register_module()
class DrawImage:
    def __call__(self, results):
        shape = results['height'], results['width']
        image = np.random.RandomState(results['img_id']).rand(*shape, 3)
        image = (image * 255).astype(np.float32)
        return results | dict(img=image, img_shape=shape, ori_shape=shape)


@TRANSFORMS.register_module()
class Jitter:
    """Draws from each generator that augmentations draw from."""

    def __call__(self, results):
        noise = random.random() + np.random.rand() + torch.rand(1).item()
        return results | dict(img=results['img'] + np.float32(noise))


@DATA_SAMPLERS.register_module()
class FirstOnlySampler(InfiniteSampler):
    """A user's, which keeps its argument under another name."""

    def __init__(self, first_only, **kwargs):
        super().__init__(**kwargs)
        self._first = first_only

    def __iter__(self):
        return (i for i in super().__iter__() if i < self._first)


@MODELS.register_module()
class LossOfPixels(ToyDetector):
    """Draws random numbers, as the sampling of RoIs does."""

    def loss(self, batch_inputs, batch_data_samples):
        shape = torch.tensor(batch_inputs.shape[-2:]).float().log().sum()
        loss = super().loss(batch_inputs, batch_data_samples)['loss_cls']
        l1 = 2 if getattr(self.bbox_head, 'use_l1', False) else 1
        epoch = getattr(self, 'epoch', 0) + 1
        return dict(loss_cls=loss * torch.rand(1).sum() * shape * l1 * epoch)

    def set_epoch(self, epoch):
        self.epoch = epoch


@MODELS.register_module()
class LossOfStudent(LossOfPixels):
    """A student and a teacher that follows it, as a semi-supervised detector has them."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.student, self.teacher = nn.Conv2d(3, 1, 1), nn.Conv2d(3, 1, 1)

    def loss(self, batch_inputs, batch_data_samples):
        losses = super().loss(batch_inputs, batch_data_samples)
        student, teacher = (x(batch_inputs) for x in (self.student, self.teacher))
        return losses | dict(loss_teacher=(student - teacher.detach() - 1).square().mean())


@MODELS.register_module()
class LossOfHistory(LossOfPixels):
    """Settings that follow what was seen, by mmdet's own RoI head."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        rcnn = stock_config('dynamic_rcnn')
        settings = rcnn.train_cfg.rcnn
        settings.dynamic_rcnn.update(initial_iou=0.1, initial_beta=1.0)
        self.roi_head = MODELS.build(dict(rcnn.roi_head, train_cfg=settings, test_cfg={}))

    def loss(self, batch_inputs, batch_data_samples):
        loss = super().loss(batch_inputs, batch_data_samples)['loss_cls']
        head = self.roi_head
        head.iou_history.append(batch_inputs.mean().item())
        head.beta_history.append(batch_inputs.std().item())
        if len(head.iou_history) == 5:  # a checkpoint has some, and what earlier ones led to
            head.update_hyperparameters()
        return dict(loss_cls=loss * head.bbox_assigner.pos_iou_thr * head.bbox_head.loss_bbox.beta)


@METRICS.register_module()
class MadeUp(BaseMetric):
    """Gives values in turn, one for each pass; it draws random numbers, as a validation may."""

    def __init__(self, ap=(0.1, 0.3, 0.2, 0.4)):
        super().__init__()
        self.ap = ap

    def process(self, data_batch, data_samples):
        torch.rand(1)
        self.results.append(0)

    def compute_metrics(self, results):
        num_passes = round(MessageHub.get_current_instance().get_info('iter') / EPOCH)
        return dict(mAP=self.ap[(num_passes - 1) % len(self.ap)])


DRAWN = [dict(type='DrawImage'), dict(type='LoadAnnotations', with_bbox=True)]
JITTERED = [*DRAWN, dict(type='Jitter'), dict(type='RandomFlip', prob=0.5)]
PACKED = dict(type='PackDetInputs', meta_keys=('img_id', 'ori_shape', 'img_shape'))
RESIZED = dict(type='Resize', scale=(32, 32), keep_ratio=False)


# to serialise would collect garbage, for half a run's time
IMAGES = dict(type='UprightAndFlat', serialize_data=False)


def dataset(pipeline=JITTERED, **kwargs):
    return dict(IMAGES, pipeline=[*pipeline, PACKED], **kwargs)


def mixed(*mixing):
    inner = dict(IMAGES, pipeline=DRAWN)
    return dict(type='MultiImageMixDataset', dataset=inner, pipeline=[*mixing, RESIZED, PACKED])


TWO = dict(type='ConcatDataset', datasets=[dataset(), dataset()])
SOURCES = dict(batch_size=BATCH_SIZE, source_ratio=[1, 3])
MOSAIC = dict(type='Mosaic', img_scale=(32, 32), prob=0.5)
MIX_UP = dict(type='MixUp', img_scale=(32, 32), ratio_range=(0.8, 1.6))
DEFAULT, INFINITE = (
    dict(sampler=dict(type=f'{name}Sampler', shuffle=True)) for name in ('Default', 'Infinite')
)
BY_SHAPE = dict(batch_sampler=dict(type='AspectRatioBatchSampler'))
SAMPLERS = {
    'Default': DEFAULT,
    'Infinite': INFINITE,
    'ClassAware': dict(sampler=dict(type='ClassAwareSampler')),
    'Repeat': DEFAULT | dict(dataset=dict(type='RepeatDataset', times=2, dataset=dataset())),
    'AspectRatio': DEFAULT | BY_SHAPE,
    'InfiniteAspectRatio': INFINITE | BY_SHAPE,
    'MultiSource': dict(sampler=dict(type='MultiSourceSampler', **SOURCES), dataset=TWO),
    'GroupMultiSource': dict(sampler=dict(type='GroupMultiSourceSampler', **SOURCES), dataset=TWO),
    'CustomSampleSize': dict(
        sampler=dict(type='CustomSampleSizeSampler', dataset_size=[6, 10]), dataset=TWO
    ),
    'FirstOnly': dict(sampler=dict(type='FirstOnlySampler', first_only=10)),
}
ENDLESS = ('MultiSource', 'GroupMultiSource', 'InfiniteAspectRatio', 'Infinite', 'FirstOnly')


def model(kind='LossOfPixels', augments=None):
    preprocessor = dict(
        type='DetDataPreprocessor',
        mean=[0.0] * 3,
        std=[255.0] * 3,
        pad_size_divisor=16,
        batch_augments=augments,
    )
    return dict(model=dict(type=kind, data_preprocessor=preprocessor))


MULTI_SCALE = dict(type='BatchSyncRandomResize', random_size_range=(32, 96), size_divisor=16)
VAL_LOADER = dict(
    dataset=dataset([*DRAWN, RESIZED], test_mode=True),
    batch_size=NUM_IMAGES // NUM_VAL_BATCHES,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
)
OPTIMIZER = dict(optimizer=dict(type='SGD', lr=0.001, momentum=0.9))
CASES = {  # hooks, the data set, and what else a runner has
    'nothing': {},
    'distilled': dict(  # λ and what is trained change in the third epoch and the second
        model=dict(type='SSSDDistiller', student=model()['model'], distill_coef=2.0),
        hooks=[
            dict(type='AdaptiveDistillCoefHook'),
            dict(type='DistillPhasesHook', detach_student=3 / 8),
            dict(type='EMAHook', momentum=0.1),
        ],
    ),
    'PipelineSwitch': dict(
        hooks=[dict(type='PipelineSwitchHook', switch_epoch=2, switch_pipeline=[*JITTERED, PACKED])]
    ),
    'YOLOXModeSwitch': dict(
        dataset=mixed(MOSAIC, MIX_UP), hooks=[dict(type='YOLOXModeSwitchHook', num_last_epochs=1)]
    ),
    'Mosaic': dict(dataset=mixed(MOSAIC, MIX_UP)),
    'BatchSyncRandomResize': model(augments=[MULTI_SCALE | dict(interval=3)]),
    'EMA': dict(hooks=[dict(type='EMAHook', momentum=0.1)]),
    'MeanTeacher': dict(hooks=[dict(type='MeanTeacherHook')]) | model('LossOfStudent'),
    'SetEpochInfo': dict(hooks=[dict(type='SetEpochInfoHook')]),
    'SyncNorm': dict(hooks=[dict(type='SyncNormHook')]),
    'DynamicRoIHead': model('LossOfHistory'),
    'EarlyStopping': dict(
        hooks=[dict(type='EarlyStoppingHook', monitor='mAP', patience=2)],
        val_evaluator=dict(type='MadeUp', ap=(0.4, 0.3, 0.2, 0.1)),
    ),
    'ReduceOnPlateau': dict(  # the best epoch is the second
        schedulers=[dict(type='ReduceOnPlateauLR', monitor='mAP', rule='greater', patience=1)],
        val_evaluator=dict(type='MadeUp', ap=(0.1, 0.4, 0.3, 0.2)),
    ),
    'accumulation': dict(optim_wrapper=OPTIMIZER | dict(accumulative_counts=3)),
    'CachedMosaic': dict(
        dataset=mixed(dict(type='CachedMosaic', img_scale=(32, 32), max_cached_images=4))
    ),
}


def make_runner(
    work_dir,
    case='nothing',
    loop='epochs',
    sampler=None,
    workers=0,
    persistent=True,
    batch_size=BATCH_SIZE,
    killed_before=None,
    killed_in_validation=False,
    signals=None,
    checkpoint=None,
    **settings,
):
    """Make a runner of a case.

    ``checkpoint`` are settings of the hook that saves, ``signals`` those of a SignalHook; ``settings``
    are the runner's own. The sampler defaults to the one that stock configs have in such a loop.
    """
    case, by_epoch = dict(CASES[case]), loop == 'epochs'
    sampler = sampler or ('Default' if by_epoch else 'Infinite')
    loader = dict(
        dataset=case.pop('dataset', dataset()),
        batch_size=batch_size,
        num_workers=workers,
        persistent_workers=workers > 0 and persistent,
    )
    epochs = dict(type='EpochBasedTrainLoop', max_epochs=NUM_EPOCHS)
    iters = dict(type='IterBasedTrainLoop', max_iters=LAST, val_interval=EPOCH)
    hooks = [dict(type='RandomStateHook'), *case.pop('hooks', [])]
    if signals:
        hooks.append(dict(type='SignalHook', **signals))
    if killed_before is not None:
        hooks.append(KilledBefore(killed_before, killed_in_validation))
    interval, milestone = (1, 2) if by_epoch else (EPOCH, 2 * EPOCH + 1)
    multi_step = [dict(type='MultiStepLR', by_epoch=by_epoch, milestones=[milestone])]
    case.setdefault('schedulers', multi_step)
    saving = dict(type='SafeCheckpointHook', by_epoch=by_epoch, interval=interval)
    defaults = dict(
        model(),
        optim_wrapper=OPTIMIZER,
        val_dataloader=VAL_LOADER,
        val_cfg=dict(),
        val_evaluator=dict(type='MadeUp'),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1, log_metric_by_epoch=by_epoch),
            checkpoint=saving | (checkpoint or {}),
            preemption=dict(type='PreemptionHook'),
        ),
        experiment_name=f'{work_dir}{next(RUNS)}',  # runs of one name share their logs
    )
    return toy_runner(
        work_dir,
        hooks=hooks,
        train_cfg=epochs if by_epoch else iters,
        train_dataloader=loader | SAMPLERS[sampler],
        **defaults | case | settings,
    )


def train(*args, **kwargs):
    """Train to the end, and end the workers: the collector of garbage waits for each of them."""
    runner = make_runner(*args, **kwargs)
    try:
        runner.train()
    finally:
        if iterator := getattr(runner.train_dataloader, '_iterator', None):
            iterator._shutdown_workers()
    return runner


def pth_files(folder):
    return {path.name for path in Path(folder).glob('*.pth')}


def last_checkpoint(work_dir):
    return Path((Path(work_dir) / 'last_checkpoint').read_text())


def validations(work_dir):
    """The metrics by iteration or epoch."""
    lines = [x for path in work_dir.glob('*/*/scalars.json') for x in path.read_text().splitlines()]
    return {row['step']: row['mAP'] for row in map(json.loads, lines) if 'mAP' in row}


def assert_equal_runs(ours, expected):
    """Compare all that two runs have logged, and all that their last checkpoints have."""
    assert scalars(ours) == scalars(expected)
    assert validations(ours) == validations(expected)
    paths = [last_checkpoint(folder) for folder in (ours, expected)]
    assert paths[0].name == paths[1].name
    ours, expected = map(_comparable, paths)
    assert_equal_states(ours, expected)


def _comparable(path):
    """A checkpoint without times, names of runs, and older checkpoints' numbers."""
    checkpoint = load_from_local(str(path))
    workers = checkpoint['random_state']['workers']
    checkpoint['random_state']['workers'] = {k: pickle.loads(x) for k, x in workers.items()}
    meta, hub = checkpoint.pop('meta'), checkpoint.pop('message_hub')
    logged = {k: x.data for k, x in hub['log_scalars'].items() if 'train' in k and 'time' not in k}
    best = hub['runtime_info'].get('best_score')
    return checkpoint | dict(logged=logged, best=best, done=(meta['epoch'], meta['iter']))
