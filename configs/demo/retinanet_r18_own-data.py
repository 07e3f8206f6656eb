# A wider backbone, to teach retinanet_r18-small_own-data.py.
_base_ = './retinanet_r18-small_own-data.py'

model = dict(backbone=dict(base_channels=64), neck=dict(in_channels=[64, 128, 256, 512]))
