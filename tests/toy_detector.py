"""A detector, a data set and a runner as small as they can be, for what hooks do to a real run."""

import copy

import torch
from mmdet.models import BaseDetector
from mmdet.registry import DATASETS, MODELS
from mmdet.structures import DetDataSample
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch import nn
from torch.utils.data import Dataset

NUM_IMAGES = 12
BATCH_SIZE = 2
ITERS_PER_EPOCH = NUM_IMAGES // BATCH_SIZE
TOY_MODEL = dict(
    type='SSSDDistiller',
    student=dict(type='ToyDetector', data_preprocessor=dict(type='DetDataPreprocessor')),
    distill_coef=2.0,
)


class ToyHead(nn.Module):
    num_classes = 2

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 1, 1)


@MODELS.register_module()
class ToyDetector(BaseDetector):
    """One conv as backbone, one as neck, and a head that wants every pixel to be 1."""

    def __init__(self, data_preprocessor=None):
        super().__init__(data_preprocessor=data_preprocessor)
        self.backbone = nn.Conv2d(3, 8, 3, padding=1, stride=8)
        self.neck = nn.Conv2d(8, 8, 1)
        self.bbox_head = ToyHead()

    def extract_feat(self, batch_inputs):
        return (self.neck(self.backbone(batch_inputs)),)

    def loss(self, batch_inputs, batch_data_samples):
        (x,) = self.extract_feat(batch_inputs)
        return dict(loss_cls=(self.bbox_head.conv(x) - 1).square().mean())

    def predict(self, batch_inputs, batch_data_samples):
        return batch_data_samples

    def _forward(self, batch_inputs, batch_data_samples=None):
        return self.extract_feat(batch_inputs)


@DATASETS.register_module()
class ToyDataset(Dataset):
    metainfo = dict(classes=('a', 'b'))

    def __len__(self):
        return NUM_IMAGES

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        sample = DetDataSample(metainfo=dict(img_shape=(32, 32)))
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([[4.0, 4, 20, 20]]), labels=torch.tensor([index % 2])
        )
        return dict(inputs=torch.rand(3, 32, 32, generator=generator), data_samples=sample)


def toy_runner(
    work_dir,
    *,
    hooks=(),
    epochs=1,
    train_cfg=None,
    schedulers=(),
    optim_wrapper=None,
    checkpoint=None,
    **kwargs,
) -> Runner:
    """Make a runner that trains a distilled ToyDetector; ``kwargs`` replace what it is made of."""
    train_cfg = train_cfg or dict(type='EpochBasedTrainLoop', max_epochs=epochs)
    infinite = train_cfg['type'] == 'IterBasedTrainLoop'
    settings = dict(
        model=copy.deepcopy(TOY_MODEL),
        work_dir=str(work_dir),
        train_dataloader=toy_loader('InfiniteSampler' if infinite else 'DefaultSampler'),
        train_cfg=train_cfg,
        optim_wrapper=optim_wrapper
        or dict(
            optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=0.1),
            clip_grad=dict(max_norm=0.1),  # or it diverges
        ),
        param_scheduler=list(schedulers) or None,
        custom_hooks=[*hooks],
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1),
            checkpoint={'type': 'CheckpointHook', 'interval': 1, **(checkpoint or {})},
        ),
        log_processor=dict(by_epoch=not infinite),
        default_scope='mmdet',
        randomness=dict(seed=0),
        experiment_name=f'{work_dir}',  # two runners of one name would share their logs
    )
    return Runner(**(settings | kwargs))


def toy_loader(sampler='DefaultSampler', shuffle=True) -> dict:
    return dict(
        dataset=dict(type='ToyDataset'),
        batch_size=BATCH_SIZE,
        num_workers=0,
        sampler=dict(type=sampler, shuffle=shuffle),
        collate_fn=dict(type='pseudo_collate'),
    )
