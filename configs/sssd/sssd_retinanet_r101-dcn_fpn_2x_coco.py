_base_ = './sssd_retinanet_r101_fpn_2x_coco.py'

model = dict(student=dict(backbone=_base_.dcn))
