batch_size = 8
classes = (
    'RBC',
    'WBC',
    'Platelets',
)
custom_imports = dict(
    allow_failed_imports=False,
    imports=[
        'mmdet_sssd',
        'mmdet_sssd.commands.comparison.training_cost_hook',
    ])
data_root = 'data/bccd'
default_hooks = dict(
    check_dataset=dict(type='CheckDatasetHook'),
    checkpoint=dict(
        _scope_='mmdet',
        interval=1,
        max_keep_ckpts=1,
        save_last=True,
        type='SafeCheckpointHook'),
    detach_student=dict(type='DetachStudentHook'),
    distill_coef=dict(
        max_decays=1, policy='step', type='AdaptiveDistillCoefHook'),
    logger=dict(
        _scope_='mmdet',
        interval=10,
        log_metric_by_epoch=True,
        type='LoggerHook'),
    param_scheduler=dict(_scope_='mmdet', type='ParamSchedulerHook'),
    random_state=dict(type='RandomStateHook'),
    sampler_seed=dict(_scope_='mmdet', type='DistSamplerSeedHook'),
    timer=dict(type='TrainingCostHook'),
    visualization=dict(_scope_='mmdet', type='DetVisualizationHook'))
default_scope = 'mmdet'
env_cfg = dict(
    cudnn_benchmark=False,
    dist_cfg=dict(backend='nccl'),
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0))
image_scale = (
    192,
    144,
)
load_from = None
log_level = 'INFO'
log_processor = dict(
    _scope_='mmdet', by_epoch=True, type='LogProcessor', window_size=50)
max_epochs = 24
model = dict(
    distill_coef=0,
    distill_loss=dict(type='JSDistanceLoss'),
    student=dict(
        backbone=dict(
            deepen_factor=0.33, type='CSPDarknet', widen_factor=0.25),
        bbox_head=dict(
            feat_channels=64, in_channels=64, num_classes=3, type='YOLOXHead'),
        data_preprocessor=dict(
            pad_size_divisor=32, type='DetDataPreprocessor'),
        neck=dict(
            in_channels=[
                64,
                128,
                256,
            ],
            num_csp_blocks=1,
            out_channels=64,
            type='YOLOXPAFPN'),
        test_cfg=dict(
            nms=dict(iou_threshold=0.65, type='nms'), score_thr=0.01),
        train_cfg=dict(
            assigner=dict(center_radius=2.5, type='SimOTAAssigner')),
        type='YOLOX'),
    teacher=dict(soft_regions=True),
    type='SSSDDistiller')
num_classes = 3
num_images = 205
optim_wrapper = dict(
    clip_grad=dict(max_norm=10, norm_type=2),
    optimizer=dict(lr=0.001, type='AdamW', weight_decay=0.05),
    type='OptimWrapper')
param_scheduler = [
    dict(begin=0, by_epoch=False, end=31, start_factor=0.001, type='LinearLR'),
    dict(
        begin=0,
        by_epoch=True,
        end=24,
        gamma=0.1,
        milestones=[
            16,
            21,
        ],
        type='MultiStepLR'),
]
randomness = dict(seed=0)
resume = False
test_cfg = dict(type='TestLoop')
test_dataloader = dict(
    batch_size=8,
    dataset=dict(
        ann_file='annotations/test.json',
        data_prefix=dict(img='images'),
        data_root='data/bccd',
        metainfo=dict(classes=(
            'RBC',
            'WBC',
            'Platelets',
        )),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(keep_ratio=True, scale=(
                192,
                144,
            ), type='Resize'),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(
                meta_keys=(
                    'img_id',
                    'img_path',
                    'ori_shape',
                    'img_shape',
                    'scale_factor',
                ),
                type='PackDetInputs'),
        ],
        test_mode=True,
        type='CocoDataset'),
    drop_last=False,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(shuffle=False, type='DefaultSampler'))
test_evaluator = dict(
    ann_file='data/bccd/annotations/test.json',
    classwise=True,
    metric='bbox',
    type='CocoMetric')
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(keep_ratio=True, scale=(
        192,
        144,
    ), type='Resize'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        meta_keys=(
            'img_id',
            'img_path',
            'ori_shape',
            'img_shape',
            'scale_factor',
        ),
        type='PackDetInputs'),
]
train_ann = 'annotations/train.json'
train_cfg = dict(max_epochs=24, type='EpochBasedTrainLoop', val_interval=8)
train_dataloader = dict(
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    batch_size=8,
    dataset=dict(
        ann_file='annotations/train.json',
        data_prefix=dict(img='images'),
        data_root='data/bccd',
        filter_cfg=dict(filter_empty_gt=False),
        metainfo=dict(classes=(
            'RBC',
            'WBC',
            'Platelets',
        )),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(keep_ratio=True, scale=(
                192,
                144,
            ), type='Resize'),
            dict(prob=0.5, type='RandomFlip'),
            dict(type='PackDetInputs'),
        ],
        type='CocoDataset'),
    num_workers=0,
    persistent_workers=False,
    sampler=dict(shuffle=True, type='DefaultSampler'))
train_img = 'images'
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(keep_ratio=True, scale=(
        192,
        144,
    ), type='Resize'),
    dict(prob=0.5, type='RandomFlip'),
    dict(type='PackDetInputs'),
]
val_ann = 'annotations/val.json'
val_cfg = dict(type='ValLoop')
val_dataloader = dict(
    batch_size=8,
    dataset=dict(
        ann_file='annotations/val.json',
        data_prefix=dict(img='images'),
        data_root='data/bccd',
        metainfo=dict(classes=(
            'RBC',
            'WBC',
            'Platelets',
        )),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(keep_ratio=True, scale=(
                192,
                144,
            ), type='Resize'),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(
                meta_keys=(
                    'img_id',
                    'img_path',
                    'ori_shape',
                    'img_shape',
                    'scale_factor',
                ),
                type='PackDetInputs'),
        ],
        test_mode=True,
        type='CocoDataset'),
    drop_last=False,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(shuffle=False, type='DefaultSampler'))
val_evaluator = dict(
    ann_file='data/bccd/annotations/val.json',
    classwise=True,
    metric='bbox',
    type='CocoMetric')
val_img = 'images'
vis_backends = [
    dict(_scope_='mmdet', type='LocalVisBackend'),
]
visualizer = dict(
    _scope_='mmdet',
    name='visualizer',
    type='DetLocalVisualizer',
    vis_backends=[
        dict(type='LocalVisBackend'),
    ])
warmup_iters = 31
