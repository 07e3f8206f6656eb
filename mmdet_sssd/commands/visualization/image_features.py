"""Draws student and teacher features of labelled images, one picture per image."""

import copy
from pathlib import Path

from mmdet.registry import MODELS
from mmdet.utils import get_test_pipeline_cfg, register_all_modules
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.runner import load_checkpoint
from rich.progress import track

from ...checkpoints import loading
from ...datasets import loads_labels_after_resizing, rescale_labels
from ...errors import ConfigError
from ...models import SSSDDistiller
from .feature_picture import draw_features, look_at_features
from .labelled_images import find_labelled_images


def draw_images(
    cfg: Config,
    checkpoint: str,
    images: list[str],
    out: Path = Path('visualized'),
    score_thr: float = 0.3,
    device: str = 'cpu',
) -> None:
    """Draw the features of student and teacher, a row per level.

    Args:
        cfg: The whole config, with an ``SSSDDistiller``.
        checkpoint: Checkpoint of its training, with the teacher.
        images: Images of the config's data sets: paths, or file names.
        out: Folder to write to.
        score_thr: Lowest score to draw.
        device: Device to run on.

    Raises:
        ConfigError: if the model is not an ``SSSDDistiller``, the checkpoint belongs to another
            model, or no data set lists an image.
    """
    loading.install()
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
        ConfigError: if the model is not an ``SSSDDistiller``, or a weight is missing or has another
            shape.
    """
    if cfg.model.type not in ('SSSDDistiller', SSSDDistiller):
        raise ConfigError(
            f'{cfg.filename} has model.type={cfg.model.type}; accepted: SSSDDistiller, whose teacher '
            'can be drawn. Without IMAGE, predictions of any detector are drawn'
        )
    distiller = MODELS.build(cfg.model)
    loaded = load_checkpoint(distiller, checkpoint, map_location='cpu')
    weights = loaded.get('state_dict', loaded)
    for name, value in distiller.state_dict().items():
        if name not in weights or weights[name].shape != value.shape:
            found = tuple(weights[name].shape) if name in weights else 'none'
            raise ConfigError(
                f'{checkpoint} does not belong to {cfg.filename}: the model needs {name} of shape '
                f'{tuple(value.shape)}, found {found}; accepted: a checkpoint from training with '
                'this config (stock checkpoints and exported students have no teacher)'
            )
    distiller.dataset_meta = loaded['meta']['dataset_meta']
    return distiller
