# Backbones that an R-50 config is changed to, as detectron2 and the LGD paper have them:
#   model = dict(student=dict(backbone=_base_.dcn)) and the like.
r101 = dict(depth=101, init_cfg=dict(checkpoint='torchvision://resnet101'))
dcn = dict(  # DCN v2 in the last three stages
    dcn=dict(type='DCNv2', deform_groups=1, fallback_on_stride=False),
    stage_with_dcn=(False, True, True, True),
)
x101_32x8d = dict(
    type='ResNeXt',
    depth=101,
    groups=32,
    base_width=8,
    norm_cfg=dict(type='BN', requires_grad=False),
    style='pytorch',
    init_cfg=dict(checkpoint='open-mmlab://detectron2/resnext101_32x8d'),
)
# Caffe2 trained it on images in BGR.
x101_32x8d_preprocessor = dict(
    mean=[103.530, 116.280, 123.675],
    std=[57.375, 57.120, 58.395],
    bgr_to_rgb=False,
)
