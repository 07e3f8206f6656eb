# A COCO-format data set of the user's own, and a schedule of any length. The environment says where
# and how long; class names and counts are read from the annotations:
#   SSSD_DATA_ROOT    folder of the data set
#   SSSD_TRAIN_ANN, SSSD_VAL_ANN, SSSD_TEST_ANN    annotation files in it; to test on, by default VAL's
#   SSSD_TRAIN_IMG, SSSD_VAL_IMG, SSSD_TEST_IMG    image folders in it
#   SSSD_MAX_EPOCHS   length of the schedule; learning-rate drops and phases follow
#   SSSD_BATCH_SIZE   images per process
#   SSSD_IMAGE_SCALE  longest x shortest side that images are resized to, keeping their ratio
_base_ = []  # lets mmengine read a config that imports

import os

from mmdet_sssd.datasets import (
    check_variables,
    metainfo_of,
    positive_integers,
    read_coco_summary,
)

check_variables()

data_root = '{{$SSSD_DATA_ROOT:data/own}}'
train_ann = '{{$SSSD_TRAIN_ANN:annotations/train.json}}'
val_ann = '{{$SSSD_VAL_ANN:annotations/val.json}}'
train_img = '{{$SSSD_TRAIN_IMG:images}}'
val_img = '{{$SSSD_VAL_IMG:images}}'
(max_epochs,) = positive_integers('{{$SSSD_MAX_EPOCHS:24}}', 'SSSD_MAX_EPOCHS')
(batch_size,) = positive_integers('{{$SSSD_BATCH_SIZE:2}}', 'SSSD_BATCH_SIZE')
image_scale = positive_integers('{{$SSSD_IMAGE_SCALE:1333x800}}', 'SSSD_IMAGE_SCALE', count=2)

classes, num_images = read_coco_summary(
    data_root, train_ann, 'SSSD_DATA_ROOT and SSSD_TRAIN_ANN in the environment'
)
num_classes = len(classes)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(
        type='CocoDataset',
        metainfo=metainfo_of(classes),
        data_root=data_root,
        ann_file=train_ann,
        data_prefix=dict(img=train_img),
        filter_cfg=dict(filter_empty_gt=False),  # images without objects teach too
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=batch_size,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CocoDataset',
        metainfo=metainfo_of(classes),
        data_root=data_root,
        ann_file=val_ann,
        data_prefix=dict(img=val_img),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = {
    **val_dataloader,
    'dataset': {
        **val_dataloader['dataset'],
        'ann_file': os.environ.get('SSSD_TEST_ANN') or val_ann,
        'data_prefix': dict(img=os.environ.get('SSSD_TEST_IMG') or val_img),
    },
}
val_evaluator = dict(type='CocoMetric', ann_file=os.path.join(data_root, val_ann), metric='bbox')
test_evaluator = {
    **val_evaluator,
    'ann_file': os.path.join(data_root, test_dataloader['dataset']['ann_file']),
}

# The papers' schedule as fractions of the run: warm-up, drops at 8/12 and 32/36.
num_processes = int(os.environ.get('WORLD_SIZE') or 1)
warmup_iters = max_epochs * num_images // (batch_size * num_processes) // 20
warmup_iters = max(2, min(1000, 1 + warmup_iters))
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=warmup_iters),
    dict(
        type='MultiStepLR',
        begin=0,
        end=max_epochs,
        by_epoch=True,
        milestones=[round(max_epochs * 8 / 12), round(max_epochs * 32 / 36)],
        gamma=0.1,
    ),
]
