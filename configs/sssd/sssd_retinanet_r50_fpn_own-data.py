# RetinaNet R-50 on a data set of the user's own; see _base_/own_data.py for what to set. The recipe is
# the gentle one of `mmdet-sssd wrap`.
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/default_runtime.py',
    '../_base_/own_data.py',
    '../_base_/distiller.py',
]

from mmdet_sssd.recipes import gentle

_base_.model.bbox_head.num_classes = _base_.num_classes
model = dict(gentle.model, _delete_=True, student=_base_.model)
default_hooks = dict(
    gentle.hooks,
    checkpoint=dict(type='SafeCheckpointHook', max_keep_ckpts=2, save_best='coco/bbox_mAP'),
)

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=0.0001),
    clip_grad=dict(type='value', clip_value=1.0),
)
# The learning rate is for 16 images a step; it follows the number there are.
auto_scale_lr = dict(enable=True, base_batch_size=16)
