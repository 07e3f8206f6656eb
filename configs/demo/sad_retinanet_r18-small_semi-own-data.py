# Semi-supervised SAD on one's own data: images with labels, images without, and a trained detector of
# the same classes. Beside what ../_base_/own_data.py reads from the environment:
#   SSSD_UNLABELLED_ANN   COCO file that lists the images without labels; its annotations are not read
#   SSSD_UNLABELLED_IMG   folder of these images
# The teacher is read as in ../_base_/own_teacher.py.
# Half of each batch (SSSD_BATCH_SIZE) is labelled, half is not. An epoch of SSSD_MAX_EPOCHS is as many
# iterations as it takes one process to train on as many images as both sets have.
_base_ = [
    './retinanet_r18-small_own-data.py',
    '../_base_/distiller.py',
    '../_base_/own_teacher.py',
]

import math

from mmdet_sssd.datasets import positive_integers, read_coco_summary, with_unlabelled
from mmdet_sssd.recipes import sad
from mmdet_sssd.recipes import semi as recipe

unlabelled_ann = '{{$SSSD_UNLABELLED_ANN:annotations/unlabelled.json}}'
unlabelled_img = '{{$SSSD_UNLABELLED_IMG:images}}'
(batch_size,) = positive_integers('{{$SSSD_BATCH_SIZE:2}}', 'SSSD_BATCH_SIZE', least=2)
num_unlabelled = read_coco_summary(
    _base_.data_root, unlabelled_ann, 'SSSD_DATA_ROOT and SSSD_UNLABELLED_ANN in the environment'
)[1]

model = dict(
    recipe.model,
    _delete_=True,
    student=_base_.model,
    teachers=dict(pretrained=_base_.own_teacher),
    terms=sad.model['terms'],
)

train_dataloader = dict(
    batch_sampler=None,
    sampler=dict(
        _delete_=True, type='MultiSourceSampler', batch_size=batch_size, source_ratio=[1, 1]
    ),
    dataset=dict(
        with_unlabelled(_base_.train_dataloader.dataset, unlabelled_ann, unlabelled_img),
        _delete_=True,
    ),
)

epoch_iters = math.ceil((_base_.num_images + num_unlabelled) / batch_size)
max_iters = _base_.max_epochs * epoch_iters
train_cfg = dict(
    _delete_=True, type='IterBasedTrainLoop', max_iters=max_iters, val_interval=epoch_iters
)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=0.001,
        by_epoch=False,
        begin=0,
        end=max(2, min(1000, max_iters // 20)),
    ),
    dict(
        type='MultiStepLR',
        begin=0,
        end=max_iters,
        by_epoch=False,
        milestones=[round(max_iters * 8 / 12), round(max_iters * 32 / 36)],
        gamma=0.1,
    ),
]
default_hooks = dict(
    recipe.hooks,
    checkpoint=dict(type='SafeCheckpointHook', by_epoch=False, interval=epoch_iters),
)
log_processor = dict(by_epoch=False)
