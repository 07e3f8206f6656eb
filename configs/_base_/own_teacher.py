# A pretrained teacher of the user's own. The environment says which:
#   SSSD_TEACHER_CHECKPOINT  file or address of its weights
#   SSSD_TEACHER_CONFIG      its config; if not set, demo/retinanet_r18_own-data.py
_base_ = []  # lets mmengine read a config that imports

from mmdet_sssd.datasets import read_teacher

own_teacher = read_teacher(default='{{ fileDirname }}/../demo/retinanet_r18_own-data.py')
