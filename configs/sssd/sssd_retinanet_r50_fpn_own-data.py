# RetinaNet R-50 on a data set of the user's own; see _base_/own_data.py for what to set. The recipe is
# the gentle one of `mmdet-sssd wrap`.
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/own_data.py',
    '../_base_/sssd.py',
]

_base_.model.bbox_head.num_classes = _base_.num_classes
model = dict(
    _delete_=True,
    type='SSSDDistiller',
    student=_base_.model,
    teacher_head_grad=dict(cls=0),
    economy=True,
)
_base_.sssd_hooks.pop('freeze_backbone')
_base_.sssd_hooks.distill_coef.update(ratio=0.25)  # pulls 1/4 as hard as the detection loss
_base_.sssd_hooks.teacher_schedule = dict(type='TeacherScheduleHook', until=0.5)
_base_.sssd_hooks.checkpoint.update(max_keep_ckpts=2, save_best='coco/bbox_mAP')
default_hooks = _base_.sssd_hooks

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=0.0001),
    clip_grad=dict(type='value', clip_value=1.0),
)
# The learning rate is for 16 images a step; it follows the number there are.
auto_scale_lr = dict(enable=True, base_batch_size=16)
