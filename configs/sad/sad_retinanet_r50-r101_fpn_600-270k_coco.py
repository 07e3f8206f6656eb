_base_ = [
    'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    '../_base_/schedule_sad.py',
    '../_base_/distiller.py',
    '../_base_/zoo_teachers.py',
]

from mmdet_sssd.recipes import sad as recipe

model = dict(
    recipe.model,
    _delete_=True,
    student=_base_.model,
    teachers=dict(pretrained=_base_.retinanet_r101),
)
default_hooks = dict(recipe.hooks, checkpoint=_base_.iter_checkpoint)

# Shorter side 600 pixels, longest 1000.
_base_.train_dataloader.dataset.pipeline[2].scale = (1000, 600)
_base_.val_dataloader.dataset.pipeline[1].scale = (1000, 600)
_base_.test_dataloader.dataset.pipeline[1].scale = (1000, 600)

train_cfg = dict(_delete_=True, **_base_.iter_train_cfg)
train_dataloader = dict(sampler=_base_.iter_sampler)
param_scheduler = _base_.iter_param_scheduler
optim_wrapper = dict(optimizer=dict(lr=0.01))
log_processor = _base_.iter_log_processor
