_base_ = ['./sssd_faster-rcnn_r50_fpn_2x_coco.py', '../_base_/backbones.py']

model = dict(student=dict(backbone=_base_.r101))
