# Semi-supervised SAD: COCO's labelled and unlabelled images, the ones with the teacher's detections.
# 270k iterations of 16 images, 8 GPUs x (1 labelled + 1 unlabelled), drops at 180k and 240k.
# mmdet's data sets, with one view of the unlabelled images instead of a weak and a strong one:
# https://mmdetection.readthedocs.io/en/latest/user_guides/semi_det.html says how their
# annotations/instances_unlabeled2017.json is made.
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/datasets/semi_coco_detection.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/schedule_sad.py',
    '../_base_/distiller.py',
    '../_base_/zoo_teachers.py',
]

from mmdet_sssd.datasets import with_unlabelled
from mmdet_sssd.recipes import sad
from mmdet_sssd.recipes import semi as recipe

model = dict(
    recipe.model,
    _delete_=True,
    student=_base_.model,
    teachers=dict(pretrained=_base_.retinanet_r101),
    terms=sad.model['terms'],
)

_base_.labeled_dataset.pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(1333, 800), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
unlabelled = _base_.unlabeled_dataset
train_dataloader = dict(
    batch_size=2,
    num_workers=2,
    sampler=dict(batch_size=2, source_ratio=[1, 1]),
    dataset=dict(
        with_unlabelled(_base_.labeled_dataset, unlabelled.ann_file, unlabelled.data_prefix.img),
        _delete_=True,
    ),
)

default_hooks = dict(recipe.hooks, checkpoint=_base_.iter_checkpoint)

train_cfg = _base_.iter_train_cfg
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
param_scheduler = _base_.iter_param_scheduler
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=0.0001),
)
auto_scale_lr = dict(enable=False, base_batch_size=16)
log_processor = _base_.iter_log_processor
