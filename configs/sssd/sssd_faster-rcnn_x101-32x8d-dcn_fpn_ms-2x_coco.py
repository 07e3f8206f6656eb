_base_ = './sssd_faster-rcnn_x101-32x8d-dcn_fpn_2x_coco.py'

train_dataloader = dict(dataset=dict(pipeline=_base_.ms_train_pipeline))
