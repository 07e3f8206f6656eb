# The small RetinaNet with a teacher of features from a trained detector and one from a fixed backbone,
# each for an arm of its own.
_base_ = [
    '../../../configs/demo/retinanet_r18-small_own-data.py',
    '../../../configs/_base_/own_teacher.py',
]

from mmdet_sssd.recipes import structural_kd  # noqa: E402

custom_imports = dict(imports=['mmdet_sssd', 'tests.studies.efficientnet_lite'])
model = dict(
    structural_kd.model,
    _delete_=True,
    student=_base_.model,
    teachers=dict(
        pretrained=_base_.own_teacher,
        backbone=dict(
            type='BackboneTeacher',
            backbone=dict(type='EfficientNetLite'),
            mean=(127, 127, 127),
            std=(128, 128, 128),
        ),
    ),
)
default_hooks = structural_kd.hooks
