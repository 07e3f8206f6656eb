# The small RetinaNet distilled from a pretrained one by SAD; see _base_/own_teacher.py.
_base_ = './structural_kd_retinanet_r18-small_own-data.py'

from mmdet_sssd.recipes import sad as recipe

model = dict(terms=dict(recipe.model['terms'], _delete_=True))
