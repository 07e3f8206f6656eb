"""A small distilled RetinaNet on drawn shapes, for what needs real data and predictions."""

from pathlib import Path

from mmengine.config import Config
from mmengine.runner import Runner

from mmdet_sssd.commands import shapes as drawing

from .stock_detectors import stock_config

LOAD_IMAGE = dict(type='LoadImageFromFile')
LOAD_LABELS = dict(type='LoadAnnotations', with_bbox=True)
STRETCH = dict(type='Resize', scale=(96, 48), keep_ratio=False)
PACK = dict(
    type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
)
LABELS_FIRST = [LOAD_IMAGE, LOAD_LABELS, STRETCH, PACK]  # as stock training pipelines do
LABELS_LAST = [LOAD_IMAGE, STRETCH, LOAD_LABELS, PACK]  # as stock test pipelines do
WITHOUT_WORKERS = [
    f'{stage}_dataloader.{setting}'
    for stage in ('train', 'val', 'test')
    for setting in ('num_workers=0', 'persistent_workers=False')
]
"""Changes to configs of one's own data."""


def draw_shapes(out: Path) -> Path:
    """Draw eight images of 64x64 to train on and four to validate on."""
    drawing.draw_data_set(out, train=8, val=4, size=64, seed=3)
    return out


def shapes_environment(shapes: Path, epochs: int) -> dict[str, str]:
    """Let configs of one's own data find :func:`draw_shapes`'s, and processes this checkout."""
    return dict(
        SSSD_DATA_ROOT=str(shapes),
        SSSD_TRAIN_IMG='train',
        SSSD_VAL_IMG='val',
        SSSD_IMAGE_SCALE='64x64',
        SSSD_BATCH_SIZE='4',
        SSSD_MAX_EPOCHS=str(epochs),
        PYTHONPATH=str(Path(__file__).parents[1]),
        PYTHONWARNINGS='ignore',
        OMP_NUM_THREADS='1',
    )


def shapes_dataset(root: Path, split: str, pipeline: list[dict]) -> dict:
    return dict(
        type='CocoDataset',
        metainfo=dict(classes=drawing.CLASSES),
        data_root=str(root),
        ann_file=f'annotations/{split}.json',
        data_prefix=dict(img=split),
        test_mode=split == 'val',
        pipeline=pipeline,
    )


def small_student():
    """A RetinaNet that detects something after a few batches, of which it is sure of nothing."""
    student = stock_config('retinanet')
    student.bbox_head.num_classes = len(drawing.CLASSES)
    student.test_cfg.update(score_thr=0.0)
    return student


def small_runner(
    work_dir: Path,
    shapes: Path,
    *,
    pipeline=LABELS_LAST,
    model=None,
    distilled=True,
    metrics=(),
    **kwargs,
) -> Runner:
    """Make a runner of two epochs of two iterations.

    Args:
        work_dir: Its folder.
        shapes: Folder of the data set.
        pipeline: The pipeline to validate and test with.
        model: What differs in the distiller's config.
        distilled: Whether there is a distiller; else the detector is trained alone.
        metrics: What is computed beside COCO's metrics.
        kwargs: What differs in the config.
    """
    loader = dict(batch_size=4, num_workers=0)
    val = dict(
        **loader,
        sampler=dict(type='DefaultSampler', shuffle=False),
        dataset=shapes_dataset(shapes, 'val', pipeline),
    )
    coco = dict(type='CocoMetric', ann_file=f'{shapes}/annotations/val.json', metric='bbox')
    distiller = {'type': 'SSSDDistiller', 'student': small_student(), **(model or {})}
    cfg = dict(
        model=distiller if distilled else small_student(),
        train_dataloader=dict(
            **loader,
            sampler=dict(type='DefaultSampler', shuffle=True),
            dataset=shapes_dataset(shapes, 'train', LABELS_FIRST),
        ),
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=2),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-3)),
        **{f'{stage}_dataloader': val for stage in ('val', 'test')},
        **{f'{stage}_evaluator': [coco, *metrics] for stage in ('val', 'test')},
        val_cfg=dict(),
        test_cfg=dict(),
        default_scope='mmdet',
        randomness=dict(seed=0),
        work_dir=str(work_dir),
        experiment_name=str(work_dir),  # two runners of one name would share their logs
    )
    return Runner.from_cfg(Config({**cfg, **kwargs}))
