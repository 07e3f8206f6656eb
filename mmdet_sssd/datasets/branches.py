"""Training data of which only a part has labels; mmdet's ``MultiBranch`` names branches likewise."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

from mmcv.transforms import Compose
from mmdet.datasets import ConcatDataset
from mmdet.registry import DATASETS

from ..config_tree import nested_configs
from .leaf_datasets import WRAPPED, leaf_datasets, nested_datasets

LABELLED, UNLABELLED = BRANCHES = 'sup', 'unsup'


@DATASETS.register_module()
class PartlyLabelledDataset(ConcatDataset):
    """Labelled images, and others whose labels are not used; each sample goes to its kind's branch.

    The pipelines are those of a stock config. Those of the unlabelled images get no labels, and crops
    may be without objects there. ``PipelineSwitchHook`` and ``YOLOXModeSwitchHook`` switch both kinds.

    Args:
        datasets: Configs of the labelled images and of the unlabelled ones, in this order.
    """

    def __init__(self, datasets: Sequence[dict], **kwargs: Any) -> None:
        super().__init__(datasets, **kwargs)
        for dataset in nested_datasets(self.datasets[1]):
            _allow_no_objects(getattr(dataset, 'pipeline', ()))
        for leaf in leaf_datasets(self.datasets[1]):
            leaf.pipeline = Compose([hide_labels, *leaf.pipeline.transforms])

    def __getitem__(self, index: int) -> dict[str, dict]:
        """Load a sample: ``inputs`` and ``data_samples`` by branch, None in the other kind's."""
        own = BRANCHES[self.get_dataset_source(index)]
        sample = super().__getitem__(index)
        return {
            key: {x: value if x == own else None for x in BRANCHES} for key, value in sample.items()
        }

    @property
    def pipeline(self) -> Compose:
        """The pipeline of the labelled images; ``PipelineSwitchHook`` sets another for all."""
        return next(leaf_datasets(self.datasets[0])).pipeline

    @pipeline.setter
    def pipeline(self, pipeline: Compose) -> None:
        for leaf in leaf_datasets(self.datasets[0]):
            leaf.pipeline = pipeline
        pipeline = copy.deepcopy(pipeline)
        _allow_no_objects(pipeline)
        for leaf in leaf_datasets(self.datasets[1]):
            leaf.pipeline = Compose([hide_labels, *pipeline.transforms])

    def update_skip_type_keys(self, skip_type_keys: Sequence[str]) -> None:
        """Skip steps of all ``MultiImageMixDataset``, as ``YOLOXModeSwitchHook`` demands."""
        for part in self.datasets:
            for dataset in nested_datasets(part):
                if hasattr(dataset, 'update_skip_type_keys'):
                    dataset.update_skip_type_keys(skip_type_keys)


def hide_labels(results: dict) -> dict:
    """Let ``LoadAnnotations``, which follows, find no objects."""
    return {**results, 'instances': []}


def _allow_no_objects(pipeline: Compose | Sequence) -> None:
    """Let a pipeline's steps, also those inside others, keep images and crops without objects."""
    for step in _steps(pipeline):
        if hasattr(step, 'allow_negative_crop'):
            step.allow_negative_crop = True
        if hasattr(step, 'skip_img_without_anno'):  # Albu's
            step.skip_img_without_anno = False


def _steps(pipeline: Any) -> Iterator[Any]:
    """Yield a pipeline's steps and those inside them, as in ``RandomChoice``."""
    inner = pipeline if isinstance(pipeline, (list, tuple)) else getattr(pipeline, 'transforms', ())
    for step in inner:
        yield step
        yield from _steps(step)


def with_unlabelled(
    dataset: dict, ann_file: str, img: str | None = None, repeat: int = 1
) -> dict[str, Any]:
    """Add images without labels to a data set's config.

    Args:
        dataset: Config of the labelled images, possibly of a wrapper; not changed.
        ann_file: COCO file that lists the images, absolute or in the same ``data_root``; its
            annotations are not used.
        img: Their folder, absolute or in ``data_root``. Defaults to that of the labelled images.
        repeat: How often an epoch goes through the labelled images. Defaults to 1.
    """
    unlabelled = copy.deepcopy(dataset)
    for _, leaf in nested_configs(unlabelled, into=WRAPPED):
        if 'ann_file' in leaf:
            leaf.update(ann_file=ann_file, filter_cfg=dict(filter_empty_gt=False))
            leaf.pop('indices', None)
            if img is not None:
                leaf['data_prefix'] = {**(leaf.get('data_prefix') or {}), 'img': img}
    if repeat > 1:
        dataset = dict(type='RepeatDataset', times=repeat, dataset=dataset)
    return dict(type=PartlyLabelledDataset.__name__, datasets=[dataset, unlabelled])


def labelled_dataset(dataset: dict) -> dict:
    """Reduce the config of a :class:`PartlyLabelledDataset` to its labelled images; keep others."""
    name = str(dataset.get('type')).rpartition('.')[2]
    return dataset['datasets'][0] if name == PartlyLabelledDataset.__name__ else dataset
