"""Runs of a small RetinaNet, stock and distilled, on four images."""

import json
from pathlib import Path

import cv2
import numpy as np
from mmengine.runner import Runner

from ..stock_detectors import NUM_CLASSES, stock_config

CLASSES = tuple('abc')
NUM_IMAGES = 4
TRAIN_PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs'),
]
TEST_PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(64, 64)),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]


def write_images(folder: Path) -> Path:
    """Write images of 64×64 pixels with two labelled objects each; gives their folder."""
    rng = np.random.default_rng(0)
    annotations = []
    for image in range(NUM_IMAGES):
        cv2.imwrite(str(folder / f'{image}.png'), rng.integers(0, 255, (64, 64, 3), np.uint8))
        for box in ([4, 4, 24, 30], [30, 20, 28, 40]):
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image,
                    category_id=len(annotations) % NUM_CLASSES,
                    bbox=box,
                    area=box[2] * box[3],
                    iscrowd=0,
                )
            )
    content = dict(
        images=[dict(id=i, file_name=f'{i}.png', height=64, width=64) for i in range(NUM_IMAGES)],
        annotations=annotations,
        categories=[dict(id=i, name=name) for i, name in enumerate(CLASSES)],
    )
    (folder / 'annotations.json').write_text(json.dumps(content))
    return folder


def student_config():
    """A RetinaNet that is sure enough of something to be drawn."""
    config = stock_config('retinanet')
    config.test_cfg.update(score_thr=0.0, max_per_img=5)
    return config


def distilled(student, **kwargs) -> dict:
    """Make the config of a distiller; with these defaults it trains as the student alone."""
    silent = dict(distill_coef=0.0, teacher_loss_weight=0.0)
    return dict(type='SSSDDistiller', student=student, **{**silent, **kwargs})


def small_runner(work_dir, images, model, *, epochs=3, **kwargs) -> Runner:
    """Make a runner of two iterations an epoch, each epoch followed by validation."""
    dataset = dict(
        type='CocoDataset',
        metainfo=dict(classes=CLASSES),
        data_root=str(images),
        ann_file='annotations.json',
        data_prefix=dict(img=''),
    )
    loader = dict(batch_size=2, num_workers=0, collate_fn=dict(type='pseudo_collate'))
    settings = dict(
        model=model,
        work_dir=str(work_dir),
        train_dataloader=dict(
            dataset=dict(pipeline=TRAIN_PIPELINE, **dataset),
            sampler=dict(type='DefaultSampler', shuffle=True),
            **loader,
        ),
        val_dataloader=dict(
            dataset=dict(pipeline=TEST_PIPELINE, test_mode=True, **dataset),
            sampler=dict(type='DefaultSampler', shuffle=False),
            **loader,
        ),
        val_evaluator=dict(
            type='CocoMetric', ann_file=str(images / 'annotations.json'), metric='bbox'
        ),
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=epochs),
        val_cfg=dict(),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=1e-4)),
        visualizer=dict(
            type='DetLocalVisualizer',
            name=f'{work_dir}',
            vis_backends=[dict(type='LocalVisBackend')],
        ),
        default_scope='mmdet',
        randomness=dict(seed=0),
        experiment_name=f'{work_dir}',  # two runners of one name would share their logs
    )
    return Runner(**{**settings, **kwargs})
