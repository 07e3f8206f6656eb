# A small RetinaNet on a backbone that has seen ImageNet; see configs/_base_/own_data.py for the data.
_base_ = '../../../configs/demo/retinanet_r18-small_own-data.py'

custom_imports = dict(imports=['mmdet_sssd', 'tests.studies.efficientnet_lite'])
model = dict(
    data_preprocessor=dict(mean=[127, 127, 127], std=[128, 128, 128]),
    backbone=dict(_delete_=True, type='EfficientNetLite'),
    neck=dict(in_channels=[40, 112, 320], start_level=0),
)
