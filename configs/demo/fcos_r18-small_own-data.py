# An FCOS small enough to train on a laptop, from scratch; see _base_/own_data.py for the data.
_base_ = ['./retinanet_r18-small_own-data.py']

model = dict(
    type='FCOS',
    neck=dict(add_extra_convs='on_output', relu_before_extra_convs=True),
    bbox_head=dict(
        _delete_=True,
        type='FCOSHead',
        num_classes=_base_.num_classes,
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        strides=[8, 16, 32, 64, 128],
        # half of stock's, as small images want
        regress_ranges=((-1, 32), (32, 64), (64, 128), (128, 256), (256, 1e8)),
        norm_on_bbox=True,
        centerness_on_reg=True,
        center_sampling=True,
        conv_bias=True,
        loss_bbox=dict(type='GIoULoss', loss_weight=1.0),
    ),
    train_cfg=None,
    test_cfg=dict(nms=dict(iou_threshold=0.6)),
)
