# A YOLOX small enough to train on a laptop, from scratch; see _base_/own_data.py for the data.
# No mosaic or mixup, no change of scale: the pipeline is own_data.py's.
_base_ = ['../_base_/own_data.py', '../_base_/small_runtime.py']

model = dict(
    type='YOLOX',
    data_preprocessor=dict(type='DetDataPreprocessor', pad_size_divisor=32),
    backbone=dict(type='CSPDarknet', deepen_factor=0.33, widen_factor=0.25),
    neck=dict(type='YOLOXPAFPN', in_channels=[64, 128, 256], out_channels=64, num_csp_blocks=1),
    bbox_head=dict(
        type='YOLOXHead',
        num_classes=_base_.num_classes,
        in_channels=64,
        feat_channels=64,
    ),
    train_cfg=dict(assigner=dict(type='SimOTAAssigner', center_radius=2.5)),
    test_cfg=dict(score_thr=0.01, nms=dict(type='nms', iou_threshold=0.65)),
)
