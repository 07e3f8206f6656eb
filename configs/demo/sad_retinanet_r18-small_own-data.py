# The small RetinaNet distilled from a pretrained one by SAD; see _base_/own_teacher.py.
_base_ = './structural_kd_retinanet_r18-small_own-data.py'

model = dict(terms=dict(_delete_=True, adl=dict(type='LogitTerm')))
