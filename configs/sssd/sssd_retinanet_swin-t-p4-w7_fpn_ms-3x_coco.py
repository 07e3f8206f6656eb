_base_ = [
    'mmdet::swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py',
    '../_base_/schedule_270k.py',
    '../_base_/distiller.py',
]

from mmdet_sssd.recipes import paper

model = dict(
    paper.model,
    _delete_=True,
    student=_base_.model,
    teacher=dict(add_context_box=True, detach_appearance=False),
)
default_hooks = dict(
    paper.hooks,
    checkpoint=_base_.iter_checkpoint,
    # as many iterations as in 2x
    phases=dict(type='DistillPhasesHook', detach_student=30 / 270, freeze_backbone=20 / 270),
)

train_cfg = dict(_delete_=True, **_base_.iter_train_cfg)
train_dataloader = dict(
    sampler=_base_.iter_sampler,
    dataset=dict(pipeline=_base_.ms_train_pipeline),
)
param_scheduler = _base_.iter_param_scheduler
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=0.0001, weight_decay=0.05),
    clip_grad=_base_.value_clipping,
)
log_processor = _base_.iter_log_processor
