# A small Faster R-CNN on a backbone that has seen ImageNet; configs/_base_/own_data.py has the data.
_base_ = '../../../configs/demo/faster-rcnn_r18-small_own-data.py'

custom_imports = dict(imports=['mmdet_sssd', 'tests.studies.efficientnet_lite'])
model = dict(
    data_preprocessor=dict(mean=[127, 127, 127], std=[128, 128, 128]),
    backbone=dict(_delete_=True, type='EfficientNetLite'),
    neck=dict(in_channels=[40, 112, 320], num_outs=4),
    rpn_head=dict(anchor_generator=dict(scales=[2], strides=[8, 16, 32, 64])),
    roi_head=dict(bbox_roi_extractor=dict(finest_scale=28, featmap_strides=[8, 16, 32])),
)
