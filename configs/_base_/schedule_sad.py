# SAD's schedule: 270k iterations of 16 images, drops at 180k and 240k. Inherit it beside a stock
# config as schedule_180k.py.
_base_ = './schedule_180k.py'

iter_train_cfg = dict(max_iters=270000)
_base_.iter_param_scheduler[1].update(end=270000, milestones=[180000, 240000])
iter_param_scheduler = _base_.iter_param_scheduler
