_base_ = ['./sssd_fcos_r50-caffe_fpn_gn-head_2x_coco.py', '../_base_/backbones.py']

model = dict(
    student=dict(
        backbone=dict(depth=101, init_cfg=dict(checkpoint='open-mmlab://detectron/resnet101_caffe'))
    ),
    teacher=dict(add_context_box=True),
)
