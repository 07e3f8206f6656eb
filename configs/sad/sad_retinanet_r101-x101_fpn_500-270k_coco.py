_base_ = ['./sad_retinanet_r50-r101_fpn_600-270k_coco.py', '../_base_/backbones.py']

model = dict(student=dict(backbone=_base_.r101), teachers=dict(pretrained=_base_.retinanet_x101))

# Shorter side 500 pixels, longest 833.
_base_.train_dataloader.dataset.pipeline[2].scale = (833, 500)
_base_.val_dataloader.dataset.pipeline[1].scale = (833, 500)
_base_.test_dataloader.dataset.pipeline[1].scale = (833, 500)
