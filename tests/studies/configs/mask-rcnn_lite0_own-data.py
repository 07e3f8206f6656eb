# A small Mask R-CNN on a backbone that has seen ImageNet; see configs/_base_/own_data.py for the data.
_base_ = 'faster-rcnn_lite0_own-data.py'

_base_.train_dataloader.dataset.pipeline[1].with_mask = True
_base_.val_evaluator.metric = ['bbox', 'segm']
_base_.test_evaluator.metric = ['bbox', 'segm']
model = dict(
    type='MaskRCNN',
    roi_head=dict(
        mask_roi_extractor=dict(
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=0),
            out_channels=64,
            finest_scale=28,
            featmap_strides=[8, 16, 32],
        ),
        mask_head=dict(
            type='FCNMaskHead',
            num_convs=2,
            in_channels=64,
            conv_out_channels=64,
            num_classes=_base_.num_classes,
            loss_mask=dict(type='CrossEntropyLoss', use_mask=True, loss_weight=1.0),
        ),
    ),
    train_cfg=dict(rcnn=dict(mask_size=28)),
    test_cfg=dict(rcnn=dict(mask_thr_binary=0.5)),
)
