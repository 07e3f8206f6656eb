_base_ = './sssd_fcos_r101-dcn-caffe_fpn_gn-head_2x_coco.py'

train_dataloader = dict(dataset=dict(pipeline=_base_.ms_train_pipeline))
