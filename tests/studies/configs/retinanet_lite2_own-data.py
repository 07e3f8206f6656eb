# A larger teacher for retinanet_lite0: the next but one backbone, and twice the width.
_base_ = 'retinanet_lite0_own-data.py'

model = dict(
    backbone=dict(size=2),
    neck=dict(in_channels=[48, 120, 352], out_channels=128),
    bbox_head=dict(in_channels=128, feat_channels=128),
)
