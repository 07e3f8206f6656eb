"""Student and teacher features of labelled images, level by level, one picture per image."""

import copy
from pathlib import Path
from typing import Any

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
    config: str,
    checkpoint: str,
    images: list[str],
    overrides: dict[str, Any] | None = None,
    out: Path = Path('visualized'),
    score_thr: float = 0.3,
    device: str = 'cpu',
) -> None:
    """Draw what student and teacher make of images.

    Args:
        config: Config with an ``SSSDDistiller``.
        checkpoint: Checkpoint of its training, with the teacher.
        images: Images of the config's data sets: paths, or file names.
        overrides: Changes to the config, by dotted key.
        out: Folder to write to.
        score_thr: Least score that is drawn.
        device: Device to run on.

    Raises:
        ConfigError: if the model is no ``SSSDDistiller``, the checkpoint another's, or an image in
            none of the data sets.
    """
    loading.install()
    register_all_modules()
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(overrides or {})
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
        print(f'{sample.img_path} is drawn in {path}')


def load_distiller(cfg: Config, checkpoint: str) -> SSSDDistiller:
    """Build a config's distiller, with the weights of a checkpoint and its ``dataset_meta``.

    Raises:
        ConfigError: if the model is something else, or weights are missing or of another shape.
    """
    if cfg.model.type not in ('SSSDDistiller', SSSDDistiller):
        raise ConfigError(
            f'{cfg.filename} has model.type={cfg.model.type}; accepted: the config of an '
            'SSSDDistiller, which has a teacher to look at'
        )
    distiller = MODELS.build(cfg.model)
    loaded = load_checkpoint(distiller, checkpoint, map_location='cpu')
    weights = loaded.get('state_dict', loaded)
    for name, value in distiller.state_dict().items():
        if name not in weights or weights[name].shape != value.shape:
            found = tuple(weights[name].shape) if name in weights else 'none'
            raise ConfigError(
                f'{checkpoint} does not belong to {cfg.filename}: the model needs {name} of shape '
                f'{tuple(value.shape)}, found {found}; accepted: a checkpoint that training with this '
                "config wrote (a stock detector's, or an exported student, has no teacher)"
            )
    distiller.dataset_meta = loaded['meta']['dataset_meta']
    return distiller
