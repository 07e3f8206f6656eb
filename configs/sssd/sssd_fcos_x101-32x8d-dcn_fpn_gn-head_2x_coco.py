_base_ = './sssd_fcos_r101-dcn-caffe_fpn_gn-head_2x_coco.py'

model = dict(
    student=dict(
        data_preprocessor=_base_.x101_32x8d_preprocessor,
        backbone=_base_.x101_32x8d,
    )
)
