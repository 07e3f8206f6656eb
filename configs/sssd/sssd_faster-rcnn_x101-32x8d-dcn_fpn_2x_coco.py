_base_ = './sssd_faster-rcnn_r101-dcn_fpn_2x_coco.py'

model = dict(
    student=dict(
        data_preprocessor=_base_.x101_32x8d_preprocessor,
        backbone=_base_.x101_32x8d,
    )
)
default_hooks = dict(detach_student=dict(last=50 / 180))
