_base_ = './sssd_retinanet_r101-dcn_fpn_2x_coco.py'

model = dict(
    student=dict(
        data_preprocessor=_base_.x101_32x8d_preprocessor,
        backbone=_base_.x101_32x8d,
    )
)
default_hooks = dict(phases=dict(detach_last=50 / 180))
