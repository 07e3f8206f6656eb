"""Commands that write files: configs, checkpoints, data sets."""

from pathlib import Path
from shlex import quote
from typing import Any

import click

from .config_names import ConfigType
from .group import Command
from .parameters import ListType, config_argument

RECIPES = ('gentle', 'paper', 'lgd')
METHODS = ('structural_kd', 'sad')
DATA = ('data_root', 'train_ann', 'val_ann', 'train_img', 'val_img', 'classes')


@click.command(cls=Command)
@config_argument(keep_scope=True)
@click.option('--out', type=Path, required=True, help='Config file to write.')
@click.option('--force', is_flag=True, help='Replace an existing --out.')
@click.option('--no-build', is_flag=True, help='Write the config without building the model.')
@click.option(
    '--recipe',
    type=click.Choice(RECIPES),
    help='gentle: distilling pulls 1/4 as hard as the detection loss, leaves what ranks boxes alone, '
    'takes the cheapest settings; its teacher stops at half time, or earlier if it is behind; '
    "paper: SSSD's; lgd: LGD's.  "
    '[default: gentle; none beside a teacher]',
)
@click.option(
    '--teacher',
    type=(ConfigType(keep_scope=True), str),
    metavar='CONFIG CHECKPOINT',
    help='Learn from a trained detector.',
)
@click.option(
    '--method',
    type=click.Choice(METHODS),
    help='What --teacher teaches. structural_kd: features, of any two detectors; sad: class logits, of '
    'dense heads with the same anchors and classes.  [default: structural_kd; none with --unlabelled]',
)
@click.option(
    '--backbone-teacher',
    metavar='MODEL[=FILE]',
    help='Learn features from a fixed image backbone: a model of timm, such as '
    'vit_small_patch16_dinov3.lvd1689m, with the weights that timm downloads, or those in FILE.',
)
@click.option(
    '--unlabelled',
    metavar='ANN',
    help='COCO file of images that --teacher labels, absolute or in the data_root.',
)
@click.option(
    '--unlabelled-img', metavar='DIR', help="Their folder.  [default: the labelled images']"
)
@click.option(
    '--masks',
    is_flag=True,
    help='Use instance masks as regions; the training pipelines then load them.',
)
@click.option('--data-root', help='Folder of your own data set, in COCO format.')
@click.option('--train-ann', help='Training annotation file in --data-root.')
@click.option('--val-ann', help='Annotation file in --data-root for validation and test.')
@click.option('--train-img', help='Training image folder in --data-root.')
@click.option('--val-img', help='Image folder in --data-root for validation and test.')
@click.option(
    '--classes',
    type=ListType(),
    metavar='NAME,NAME,…',
    help='Class names.  [default: with --data-root or --train-ann those of the annotation file]',
)
def wrap(config: str, out: Path, force: bool, no_build: bool, **options: Any) -> None:
    """Write a config that distills a stock config's detector.

    It inherits the stock config and has only what differs.

    \b
    Examples:
      mmdet-sssd wrap mmdet::retinanet/retinanet_r50_fpn_1x_coco.py --out my_config.py
      mmdet-sssd wrap mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py --out my_config.py \\
          --data-root data/cells --train-ann train.json --train-img train \\
          --val-ann val.json --val-img val
      mmdet-sssd wrap small.py --out my_config.py --teacher large.py large.pth
    """
    from mmdet_sssd.commands.wrapping import WrappingOptions, write_wrapped_config
    from mmdet_sssd.errors import ConfigError

    if out.exists() and not force:
        raise ConfigError(f'--out {out} exists already; --force replaces it')
    data = {name: x for name in DATA if (x := options.pop(name))}
    notes = write_wrapped_config(config, out, WrappingOptions(data=data, **options), not no_build)
    click.echo(f'{out} distills {config}; check it on its data: mmdet-sssd dry-run {out}')
    for note in notes:
        click.echo(f'note: {note}')


@click.command(cls=Command)
@click.argument('checkpoint')
@click.option('--out', required=True, help='Folder to write to; created if needed.')
@click.option(
    '--config',
    type=ConfigType(),
    help="The run's config.  [default: the one in the checkpoint]",
)
@click.option('--name', help="Name of the files.  [default: the checkpoint's]")
def export(checkpoint: str, out: str, config: str | None, name: str | None) -> None:
    """Export a checkpoint's student for stock mmdet.

    Writes a stock checkpoint and a stock config, which run without this package.

    \b
    Example:
      mmdet-sssd export work_dirs/my_config/epoch_12.pth --out exported
    """
    from mmdet_sssd.checkpoints import export_student

    export_student(checkpoint, out, config, name)


@click.command(cls=Command, name='convert-lgd')
@click.argument('checkpoint')
@click.option('--out', required=True, help='File to write.')
@click.option(
    '--no-context-box',
    'context_box',
    is_flag=True,
    flag_value=False,
    default=True,
    help='For a teacher trained without a context box (addCtxBox=NO in the name of its config: FCOS '
    'R-50, Faster R-CNN, Mask R-CNN).',
)
def convert_lgd(checkpoint: str, out: str, context_box: bool) -> None:
    """Convert teacher and adapter of a checkpoint of LGD.

    CHECKPOINT comes from its authors' reference code and has its weights under "model". Its student,
    a detectron2 model, is not converted.

    \b
    Example:
      mmdet-sssd convert-lgd model_final.pth --out lgd_retinanet.pth
      mmdet-sssd train lgd_retinanet_r50_fpn_ms-2x_coco load_from=lgd_retinanet.pth
    """
    from mmdet_sssd.checkpoints import convert_lgd

    convert_lgd(checkpoint, out, context_box)


@click.command(cls=Command)
@click.argument('out', type=Path)
@click.option('--train', default=400, show_default=True, help='Training images.')
@click.option('--val', default=100, show_default=True, help='Validation images.')
@click.option('--test', default=0, show_default=True, help='Test images.')
@click.option('--size', type=int, help='Side of an image in pixels.  [default: 128; hard: 96]')
@click.option('--seed', default=0, show_default=True, help='Random seed.')
@click.option(
    '--hard',
    is_flag=True,
    help='36 classes of pictograms that differ in detail, rotated, covered and cut off, on textures '
    'with distractors: with enough images a set that a small detector does not finish.',
)
def shapes(out: Path, **options: int | None) -> None:
    """Draw a small COCO-format data set of shapes.

    The folder OUT gets images of five classes with boxes and instance masks. The same options give
    the same files, and more images of a split do not change its first ones.

    \b
    Example:
      mmdet-sssd shapes data/shapes --train 1000 --size 192
      mmdet-sssd shapes data/pictograms --hard --train 30000 --val 1000 --test 2000
    """
    from mmdet_sssd.commands.shapes import draw_data_set

    classes = draw_data_set(out, **options)
    count = ' + '.join(str(options[split]) for split in ('train', 'val', 'test') if options[split])
    click.echo(f'{out} has {count} images of {", ".join(classes)}')
    places = f'SSSD_DATA_ROOT={quote(str(out))} SSSD_TRAIN_IMG=train SSSD_VAL_IMG=val'
    click.echo(f'to train on them: {places} mmdet-sssd train CONFIG, one of the *_own-data configs')
