# The papers' COCO 3x schedule: 270k iterations, drops at 210k and 250k.
_base_ = './schedule_180k.py'

iter_train_cfg = dict(max_iters=270000)
_base_.iter_param_scheduler[1].update(end=270000, milestones=[210000, 250000])
iter_param_scheduler = _base_.iter_param_scheduler
