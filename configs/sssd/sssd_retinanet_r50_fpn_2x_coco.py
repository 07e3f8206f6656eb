_base_ = [
    'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    '../_base_/schedule_180k.py',
    '../_base_/distiller.py',
]

from mmdet_sssd.recipes import paper

model = dict(
    paper.model,
    _delete_=True,
    student=_base_.model,
    teacher=dict(add_context_box=True, detach_appearance=False),
)
default_hooks = dict(paper.hooks, checkpoint=_base_.iter_checkpoint)

train_cfg = dict(_delete_=True, **_base_.iter_train_cfg)
train_dataloader = dict(sampler=_base_.iter_sampler)
param_scheduler = _base_.iter_param_scheduler
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=0.0001),
    clip_grad=_base_.value_clipping,
)
log_processor = _base_.iter_log_processor
