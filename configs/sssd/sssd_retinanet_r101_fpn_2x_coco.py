_base_ = ['./sssd_retinanet_r50_fpn_2x_coco.py', '../_base_/backbones.py']

model = dict(student=dict(backbone=_base_.r101))
