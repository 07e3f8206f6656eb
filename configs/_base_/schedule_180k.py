# The papers' COCO 2x schedule: 180k iterations of 16 images (8 GPUs x 2), drops at 8/12 and 32/36.
# Inherit it beside a stock config and take up its parts:
#   train_cfg = dict(_delete_=True, **_base_.iter_train_cfg)   and so on.
iter_train_cfg = dict(type='IterBasedTrainLoop', max_iters=180000, val_interval=10000)
iter_param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(
        type='MultiStepLR',
        begin=0,
        end=180000,
        by_epoch=False,
        milestones=[120000, 160000],
        gamma=0.1,
    ),
]
iter_sampler = dict(type='InfiniteSampler', shuffle=True)
iter_checkpoint = dict(type='SafeCheckpointHook', by_epoch=False, interval=10000, max_keep_ckpts=3)
iter_log_processor = dict(type='LogProcessor', window_size=50, by_epoch=False)
value_clipping = dict(type='value', clip_value=1.0)
# Multi-scale training: shorter side 640 to 800 in steps of 32, longest 1333.
ms_train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='RandomChoiceResize',
        scales=[(1333, side) for side in range(640, 801, 32)],
        keep_ratio=True,
    ),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
