_base_ = './structural_kd_faster-rcnn_r50-r101_fpn_2x_coco.py'

model = dict(teachers=dict(pretrained=_base_.faster_rcnn_x101))
