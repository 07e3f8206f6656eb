_base_ = './structural_kd_retinanet_r50-r101_fpn_2x_coco.py'

model = dict(teachers=dict(pretrained=_base_.retinanet_x101))
