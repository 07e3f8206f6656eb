# A RetinaNet small enough to train on a laptop, from scratch; see _base_/own_data.py for the data.
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    '../_base_/own_data.py',
    '../_base_/small_runtime.py',
]

model = dict(
    backbone=dict(
        depth=18,
        base_channels=32,
        frozen_stages=-1,
        norm_eval=False,
        init_cfg=None,
    ),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64),
    bbox_head=dict(
        num_classes=_base_.num_classes,
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        anchor_generator=dict(octave_base_scale=2),
    ),
)
