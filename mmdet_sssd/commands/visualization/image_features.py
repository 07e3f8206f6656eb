"""Draws what student and teacher see in validation images, one picture per image."""

import copy
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmdet.registry import DATASETS, MODELS
from mmdet.utils import get_test_pipeline_cfg, register_all_modules
from mmengine.config import Config
from mmengine.dataset import BaseDataset, Compose, pseudo_collate
from mmengine.runner import load_checkpoint
from rich.progress import track

from ...datasets import loads_labels_after_resizing, rescale_labels
from ...errors import ConfigError
from ...models import SSSDDistiller
from .feature_picture import draw_features, look_at_features


def draw_images(
    cfg: Config,
    checkpoint: str,
    images: Sequence[str],
    num_images: int,
    out: Path,
    score_thr: float,
    device: str,
) -> None:
    """Draw features and predictions of student and teacher, a row per level.

    Args:
        cfg: Config with an ``SSSDDistiller`` and validation data.
        checkpoint: Checkpoint from training, with the teacher.
        images: Images of the validation data, by path or by the last parts of it.
        num_images: How many to draw if ``images`` is empty, at even distances in the data.
        out: Folder to write to.
        score_thr: Lowest score to draw, in [0, 1].
        device: Device to run on.

    Raises:
        ConfigError: if the model is not an ``SSSDDistiller``, the checkpoint belongs to another
            model, there are no validation data, or a name fits none of their images, or several.
    """
    if not cfg.get('val_dataloader'):
        raise ConfigError(f'{cfg.filename} has no val_dataloader to take images from')
    register_all_modules()
    distiller = load_distiller(cfg, checkpoint).to(device).eval()
    infos = labelled_images(DATASETS.build(cfg.val_dataloader.dataset), images, num_images)
    pipeline = Compose(get_test_pipeline_cfg(cfg))
    needs_scaling = loads_labels_after_resizing(
        pipeline,
        copy.deepcopy(infos[0]),
        'the pipeline of test_dataloader.dataset',
        distiller.teachers['teacher'].use_masks,
    )
    out.mkdir(parents=True, exist_ok=True)
    num_of_stem: Counter[str] = Counter()
    for info in track(infos, 'drawing'):
        data = distiller.data_preprocessor(pseudo_collate([pipeline(info)]))
        (sample,) = data['data_samples']
        if needs_scaling:
            rescale_labels(sample.gt_instances, sample.scale_factor)
        features = look_at_features(distiller, data['inputs'], sample)
        stem = Path(sample.img_path).stem
        num_of_stem[stem] += 1  # images of several folders may share a name
        path = out / (
            f'{stem}.png' if num_of_stem[stem] == 1 else f'{stem}_{num_of_stem[stem]}.png'
        )
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
            'can be drawn. Predictions of any detector: mmdet-sssd test with --show-dir'
        )
    cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
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


def labelled_images(dataset: BaseDataset, images: Sequence[str], num_images: int) -> list[dict]:
    """Choose images of a data set; see :func:`draw_images`.

    Returns:
        What the data set knows of each, labels included, before any pipeline.

    Raises:
        ConfigError: if an image is not in the data set, or several have its name.
    """
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    if not images:
        count = min(num_images, len(infos))
        return [infos[round(index)] for index in np.linspace(0, len(infos) - 1, count)]
    found = []
    for image in images:
        parts = Path(image).parts
        named = [x for x in infos if Path(x['img_path']).absolute().parts[-len(parts) :] == parts]
        if not named:
            raise ConfigError(
                f'{image} is not among the {len(infos)} images of val_dataloader.dataset, where the '
                'teacher finds labels; accepted: path or file name of one of them'
            )
        if len(named) > 1:
            raise ConfigError(
                f'{image} is the name of {len(named)} images of val_dataloader.dataset; accepted: more '
                f'of the path, as in {named[0]["img_path"]}'
            )
        found.append(named[0])
    return found
