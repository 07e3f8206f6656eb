"""Draws student and teacher features of labelled images, one picture per image."""

import copy
from collections.abc import Iterator
from pathlib import Path

from mmdet.registry import DATASETS, MODELS
from mmdet.utils import get_test_pipeline_cfg, register_all_modules
from mmengine.config import Config
from mmengine.dataset import BaseDataset, Compose, pseudo_collate
from mmengine.runner import load_checkpoint
from rich.progress import track

from ...datasets import loads_labels_after_resizing, rescale_labels
from ...datasets.leaf_datasets import leaf_datasets
from ...errors import ConfigError
from ...models import SSSDDistiller
from .feature_picture import draw_features, look_at_features

STAGES = ('val', 'test', 'train')  # the largest last, to be read only if needed


def draw_images(
    cfg: Config,
    checkpoint: str,
    images: list[str],
    out: Path = Path('visualized'),
    score_thr: float = 0.3,
    device: str = 'cpu',
) -> None:
    """Draw the features of student and teacher, a row per level.

    Raises:
        ConfigError: if the model is not an ``SSSDDistiller``, the checkpoint belongs to another
            model, or no data set lists an image.
    """
    register_all_modules()
    distiller = load_distiller(cfg, checkpoint).to(device).eval()
    use_masks = distiller.teachers['teacher'].use_masks
    infos = find_labelled_images(cfg, images)
    pipeline = Compose(get_test_pipeline_cfg(cfg))
    needs_scaling = loads_labels_after_resizing(
        pipeline, copy.deepcopy(infos[0]), 'the pipeline of test_dataloader.dataset', use_masks
    )
    out.mkdir(parents=True, exist_ok=True)
    for info in track(infos, 'drawing'):
        data = distiller.data_preprocessor(pseudo_collate([pipeline(info)]))
        (sample,) = data['data_samples']
        if needs_scaling:
            rescale_labels(sample.gt_instances, sample.scale_factor)
        features = look_at_features(distiller, data['inputs'], sample)
        path = out / f'{Path(sample.img_path).stem}.png'
        draw_features(features, distiller.dataset_meta, score_thr).savefig(path)
        print(f'{path} shows {sample.img_path}')


def load_distiller(cfg: Config, checkpoint: str) -> SSSDDistiller:
    """Build a config's distiller, with the weights and the ``dataset_meta`` of a checkpoint.

    Raises:
        ConfigError: if the model is not an ``SSSDDistiller``, or the weights are another model's.
    """
    if cfg.model.type not in ('SSSDDistiller', SSSDDistiller):
        raise ConfigError(
            f'{cfg.filename} has model.type={cfg.model.type}; accepted: SSSDDistiller, whose teacher '
            'can be drawn. Without IMAGE, predictions of any detector are drawn'
        )
    distiller = MODELS.build(cfg.model)
    try:
        loaded = load_checkpoint(distiller, checkpoint, map_location='cpu', strict=True)
    except RuntimeError as error:
        raise ConfigError(
            f'{checkpoint} does not belong to {cfg.filename}; accepted: a checkpoint from training '
            'with this config (stock checkpoints and exported students have no teacher). '
            + ' '.join(str(error).split())
        ) from error
    distiller.dataset_meta = loaded['meta']['dataset_meta']
    return distiller


def find_labelled_images(cfg: Config, images: list[str]) -> list[dict]:
    """Look images up in a config's data sets.

    Returns:
        The data sets' information on each image, labels included, before any pipeline.

    Raises:
        ConfigError: if no data set lists an image.
    """
    found: dict[str, dict] = {}
    searched = []
    for dataset in _datasets(cfg):
        for info in (dataset.get_data_info(index) for index in range(len(dataset))):
            for image in set(images) - set(found):
                if _is_named(info['img_path'], image):
                    found[image] = info
        searched.append(f'{dataset.ann_file or type(dataset).__name__} ({len(dataset)} images)')
        if len(found) == len(set(images)):
            return [found[image] for image in images]
    missing = next(image for image in images if image not in found)
    raise ConfigError(
        f'{missing} is not in the data sets of {cfg.filename}, where the teacher finds labels '
        f'(searched: {", ".join(searched) or "none"}); accepted: path or file name of an image that '
        'one of them lists'
    )


def _datasets(cfg: Config) -> Iterator[BaseDataset]:
    """Build a config's data sets one by one, each once."""
    configs = [(cfg.get(f'{stage}_dataloader') or {}).get('dataset') for stage in STAGES]
    for index, config in enumerate(configs):
        if config and config not in configs[:index]:
            yield from leaf_datasets(DATASETS.build(config))


def _is_named(path: str, image: str) -> bool:
    """Tell whether ``image`` is a path, or the last parts of it."""
    parts = Path(image).parts
    return Path(path).parts[-len(parts) :] == parts or Path(path).resolve() == Path(image).resolve()
