"""Draw what student and teacher make of labelled images, level by level, one picture per image.

Usage: visualize.py CONFIG CHECKPOINT IMAGE... [--out DIR] [--score-thr S] [--device DEVICE], as in
`mim run mmdet_sssd visualize my_config.py work_dirs/my_config/epoch_24.pth a.jpg b.jpg --out seen`
"""

import copy
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path

from mmdet.registry import MODELS
from mmdet.utils import get_test_pipeline_cfg, register_all_modules
from mmengine.config import Config, DictAction
from mmengine.dataset import Compose, pseudo_collate
from mmengine.runner import load_checkpoint

from mmdet_sssd import ConfigError
from mmdet_sssd.commands.mmdet_tools import user_errors_last
from mmdet_sssd.commands.visualization import (
    draw_features,
    find_labelled_images,
    look_at_features,
)
from mmdet_sssd.datasets import loads_labels_after_resizing, rescale_labels
from mmdet_sssd.models import SSSDDistiller


def main() -> None:
    """Look the images up, run the model on them, draw and write."""
    args = parse_args()
    register_all_modules()
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options or {})
    distiller = load_distiller(cfg, args.checkpoint).to(args.device).eval()
    use_masks = distiller.teachers['teacher'].use_masks
    infos = find_labelled_images(cfg, args.images)
    pipeline = Compose(get_test_pipeline_cfg(cfg))
    needs_scaling = loads_labels_after_resizing(
        pipeline, copy.deepcopy(infos[0]), 'the pipeline of test_dataloader.dataset', use_masks
    )
    args.out.mkdir(parents=True, exist_ok=True)
    for info in infos:
        data = distiller.data_preprocessor(pseudo_collate([pipeline(info)]))
        (sample,) = data['data_samples']
        if needs_scaling:
            rescale_labels(sample.gt_instances, sample.scale_factor)
        features = look_at_features(distiller, data['inputs'], sample)
        path = args.out / f'{Path(sample.img_path).stem}.png'
        draw_features(features, distiller.dataset_meta, args.score_thr).savefig(path)
        print(f'{sample.img_path} is drawn in {path}')


def parse_args() -> Namespace:
    """Read the command line."""
    first, usage = __doc__.split('\n\n', 1)
    parser = ArgumentParser(
        description=first, epilog=usage, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config with model.type=SSSDDistiller')
    parser.add_argument('checkpoint', help='checkpoint of its training, with the teacher')
    parser.add_argument(
        'images', nargs='+', help="images of the config's data sets: paths, or file names"
    )
    parser.add_argument('--out', type=Path, default='visualized', help='folder to write to')
    parser.add_argument('--score-thr', type=float, default=0.3, help='least score that is drawn')
    parser.add_argument('--device', default='cpu', help='device to run on')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='changes to the config')
    return parser.parse_args()


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


if __name__ == '__main__':
    with user_errors_last():
        main()
