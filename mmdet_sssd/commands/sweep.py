"""Finds out which detectors can be distilled, by training a step of each, stock and distilled."""

import copy
import gc
import logging
import multiprocessing
import resource
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import mmdet
import numpy as np
import torch
from mmdet.models import BaseDetector
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmdet.utils import register_all_modules
from mmengine.config import Config, ConfigDict
from mmengine.logging import MessageHub, MMLogger
from mmengine.structures import InstanceData, PixelData
from rich.console import Console
from rich.progress import track
from torch import Tensor

from ..config_tree import nested_configs
from ..datasets.branches import LABELLED, UNLABELLED
from ..errors import ConfigError, within
from ..models import Distiller, SemiDistiller
from ..models.blank_pass import BlankPass
from ..models.detectors.distiller import is_distiller
from ..models.student import check_scope, count_classes

STOCK_CONFIGS = Path(mmdet.__file__).parent / '.mim/configs'
IMAGE_SIZES = (128, 320, 512)  # pixels a side; the next one if stock fails, as SSD and CornerNet do
SMALL = ('r18', 'r34', '_tiny', '_t_', '-t_', '-t-', '_nano', '-b0', 'r50')
LARGE = ('r101', 'x101', 'r152', '-l_', '-x_', '_l_', '_x_', 'swin-l', 'swin-b', 'hourglass104')
BOXES = (  # of the image's side
    (0.1, 0.15, 0.6, 0.7),
    (0.3, 0.4, 0.95, 0.9),
    (0.05, 0.5, 0.35, 0.85),
    (0.6, 0.1, 0.9, 0.3),
)


@dataclass
class SweepResult:
    """What became of one config.

    Attributes:
        config: Its path, of mmdet's below their folder of configs.
        stock: ``'ok'`` if the stock detector trained a step, or why it did not.
        distilled: ``'ok'`` if its twin did and all checks passed, or what differed; empty if stock
            did not train.
        in_scope: Whether it is a detector that this package means to distill.
        levels: Channels of the feature levels.
        image_size: Side of the images, in pixels.
    """

    config: str
    stock: str = ''
    distilled: str = ''
    in_scope: bool = True
    levels: tuple[int, ...] = ()
    image_size: int = 0

    @property
    def stock_trains(self) -> bool:
        """Whether the stock detector trained a step."""
        return self.stock.startswith('ok')

    def __str__(self) -> str:
        return ' | '.join(self.cells())

    def cells(self) -> tuple[str, ...]:
        """Give the texts of a row of the table."""
        levels = ', '.join(map(str, self.levels))
        stock = self.stock if self.in_scope else f'out of scope: {self.stock}'
        return self.config, str(self.image_size or ''), levels, stock, self.distilled


def sweep(names: Sequence[str], memory: float, seconds: float, out: Path | None = None) -> None:
    """Check configs one by one, and print the table or write it as it grows.

    Args:
        names: What :func:`find_configs` takes.
        memory: How many GiB the process of a check may address.
        seconds: How long it may take.
        out: File for the table. None prints it.

    Raises:
        ConfigError: if there is no such file or folder.
    """
    results: list[SweepResult] = []
    configs = find_configs(names)
    console = Console(soft_wrap=True)
    for config in track(configs, 'checking', console=console):
        results.append(check_apart(config, memory, seconds))
        console.print(
            f'[{len(results)}/{len(configs)}] {results[-1]}', markup=False, highlight=False
        )
        if out:
            out.write_text(as_table(results), encoding='utf-8')
    if not out:
        print(as_table(results))


def find_configs(names: Sequence[str]) -> list[list[Path]]:
    """Find config files by their paths, folders' paths, or the names of mmdet's folders of configs.

    Args:
        names: Paths of configs or of folders, or names of mmdet's folders; all of mmdet's if there
            are none.

    Returns:
        For each config file, of a folder's path each, and for each of mmdet's folders what to try
        until the stock detector trains: the file, or the folder's three smallest models, going by
        the files' names.

    Raises:
        ConfigError: if there is no such file and no such folder with configs.
    """
    folders = sorted(p.name for p in STOCK_CONFIGS.iterdir() if p.name != '_base_')
    found = {name: _find(name) for name in names or folders}
    if names and (missing := [name for name, tries in found.items() if not tries]):
        raise ConfigError(
            f'there is no file {missing[0]}, no folder with configs there, and none of that name in '
            "mmdet's"
        )
    return [configs for tries in found.values() for configs in tries]


def _find(name: str) -> list[list[Path]]:
    if Path(name).is_file():
        return [[Path(name)]]
    in_folder = sorted(Path(name).glob('*.py'))
    if in_folder:
        return [[path] for path in in_folder]
    smallest = _smallest(name)
    return [smallest] if smallest else []


def _smallest(folder: str) -> list[Path]:
    return sorted((STOCK_CONFIGS / folder).glob('*.py'), key=_size_by_name)[:3]


def _size_by_name(path: Path) -> tuple[bool, bool, int, str]:
    name = path.stem
    is_small, is_large = (any(mark in name for mark in marks) for marks in (SMALL, LARGE))
    return is_large, not is_small, len(name), name


def check_apart(configs: Sequence[Path], memory: float, seconds: float) -> SweepResult:
    """Run :func:`check_config` in processes of their own, which may crash, until stock trains.

    Args:
        configs: The config files to try, one or more.
        memory: How many GiB a process may address.
        seconds: How long it may take.

    Returns:
        The result of the first config that stock trains, or of the first one.
    """
    results = []
    for config in configs:
        results.append(_check_one_apart(config, memory, seconds))
        if results[-1].stock_trains:
            return results[-1]
        if not results[-1].in_scope:
            break
    return results[0]


def _check_one_apart(config: Path, memory: float, seconds: float) -> SweepResult:
    context = multiprocessing.get_context('fork')  # mmdet need not be imported anew
    register_all_modules()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_result, args=(sender, config, memory))
    process.start()
    sender.close()
    try:
        if receiver.poll(seconds):
            return receiver.recv()
        return SweepResult(_name(config), stock=f'took more than {seconds:.0f} s')
    except EOFError:
        process.join()
        return SweepResult(_name(config), stock=f'crashed (exit code {process.exitcode})')
    finally:
        process.kill()
        process.join()


def _send_result(sender: Connection, config: Path, memory: float) -> None:
    limit = int(memory * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    MMLogger.get_current_instance().setLevel(logging.ERROR)  # not a line for each weight
    sender.send(check_config(config))


def check_config(config: Path) -> SweepResult:
    """Train a step of a config's detector, stock and distilled, on random weights and small images.

    If the config has a distiller, the stock detector is its student. The distilled step is ok if the
    student's losses equal the stock detector's at the same seed, every parameter that has a gradient
    in stock has one, every parameter of teacher and adapter has one, the student's buffers equal
    stock's, and the student predicts.
    """
    result = SweepResult(_name(config))
    try:
        distiller = cpu_distiller(Config.fromfile(config))
        with within('model.student'):
            check_scope(distiller.student)
    except ConfigError as error:
        result.stock, result.in_scope = _one_line(error), False
        return result
    except Exception as error:
        result.stock = _one_line(error)
        return result
    for size in IMAGE_SIZES:
        result.image_size = size
        try:
            stock = StockStep(distiller.student, size)
        except Exception as error:
            if result.stock == _one_line(error):
                break
            result.stock = _one_line(error)
            gc.collect()
            continue
        result.stock = (
            f'ok, but predict fails: {stock.predict_error}' if stock.predict_error else 'ok'
        )
        result.distilled, result.levels = _check_distilled(distiller, stock)
        break
    return result


def cpu_distiller(config: Config) -> ConfigDict:
    """Read a config's distiller, or make one of its detector, to be trained from random weights.

    Weights are not downloaded, a pretrained teacher's are random too, and SyncBN is BN. BN normalises
    by the batch: with the statistics of pretrained weights it would not normalise random ones, and
    deep backbones would overflow.

    Raises:
        ConfigError: if the config has no model.
    """
    if 'model' not in config:
        raise ConfigError('it has no model')
    model = copy.deepcopy(config.model)
    if not is_distiller(model):
        model = ConfigDict(type='SSSDDistiller', student=model)
    if 'data_preprocessor' in config and 'data_preprocessor' not in model.student:
        model.student.data_preprocessor = copy.deepcopy(config.data_preprocessor)
    for _, part in nested_configs(model):
        if isinstance(part.get('init_cfg'), dict) and 'checkpoint' in part['init_cfg']:
            part['init_cfg'] = None
        for key in ('pretrained', 'teacher_ckpt', 'checkpoint', 'batch_augments'):
            if key in part and not isinstance(part[key], dict):  # a teacher may have such a name
                part[key] = None
        if 'norm_eval' in part:
            part['norm_eval'] = False
        if part.get('type') in ('SyncBN', 'MMSyncBN', 'NaiveSyncBN'):
            part['type'] = 'BN'
    return model


class StockStep:
    """A training step of a stock detector, and what it is compared by.

    Args:
        model: Its config.
        size: Side of the two images in pixels.

    Attributes:
        size: As given.
        weights: State dict before the step.
        losses: The losses, by name.
        with_gradient: Names of the parameters that got a gradient.
        buffers: All buffers after the step, by name.
        predict_error: Why the stock detector cannot predict, which its twin need not then; or empty.
    """

    def __init__(self, model: ConfigDict, size: int) -> None:
        self.size = size
        torch.manual_seed(0)
        detector = MODELS.build(copy.deepcopy(model))
        detector.init_weights()
        detector.train()
        self.weights = {key: x.clone() for key, x in detector.state_dict().items()}
        self.losses = train_step(detector, size)
        self.with_gradient = _with_gradient(detector)
        self.buffers = {name: x.clone() for name, x in detector.named_buffers()}
        self.predict_error = _predict_error(detector, size)


def train_step(detector: BaseDetector, size: int) -> dict[str, Tensor]:
    """Compute a detector's losses on :func:`small_batch` and their gradients, from a fixed seed."""
    progress = MessageHub.get_current_instance()  # what a runner notes there
    progress.update_info('epoch', 0)
    progress.update_info('iter', 0)
    batch = small_batch(detector, size)
    if isinstance(detector, SemiDistiller):
        batch = {key: {LABELLED: x, UNLABELLED: x} for key, x in batch.items()}
    data = detector.data_preprocessor(batch, True)
    torch.manual_seed(1)
    np.random.seed(1)
    losses = detector(**data, mode='loss')
    total, _ = detector.parse_losses(losses)
    total.backward()
    flat = {k: torch.stack(list(v)) if isinstance(v, list) else v for k, v in losses.items()}
    return {name: value.detach() for name, value in flat.items()}


def _check_distilled(distiller: ConfigDict, stock: StockStep) -> tuple[str, tuple[int, ...]]:
    """Train the same step of the twin; returns what differs, or ``'ok'``, and its levels' channels."""
    try:
        torch.manual_seed(0)  # some hide a detector with weights of its own, as LAD does
        twin = MODELS.build(copy.deepcopy(distiller))
        twin.init_weights()
        twin.load_state_dict(stock.weights, strict=False)
        twin.train()
        losses = train_step(twin, stock.size)
        levels = BlankPass(twin.student).channels
        return '; '.join(_differences(twin, losses, stock)) or 'ok', levels
    except Exception as error:
        return _one_line(error), ()


def _differences(twin: Distiller, losses: dict[str, Tensor], stock: StockStep) -> Iterator[str]:
    """Name what is not as it is in stock, or as it should be in teacher and adapter."""
    for name, value in stock.losses.items():
        if name not in losses or not torch.equal(losses[name], value):
            yield f'{name} differs'
    if missing := sorted(stock.with_gradient - _with_gradient(twin.student)):
        yield f'{len(missing)} parameters of the student lack a gradient, as {missing[0]}'
    for part, module in twin.named_children():
        trained = {name for name, x in module.named_parameters() if x.requires_grad}
        names = trained - _with_gradient(module)
        if part != 'student' and names:
            yield f'{len(names)} parameters of the {part} lack a gradient, as {min(names)}'
    for name, value in twin.student.named_buffers():
        sees_more = isinstance(twin, SemiDistiller)  # images, and its BN statistics show it
        if not sees_more and not torch.equal(value, stock.buffers[name]):
            yield f'buffer {name} differs'
    if not all(x.isfinite().all() for x in losses.values()):
        yield 'a loss is not finite'
    if not stock.predict_error and (error := _predict_error(twin, stock.size)):
        yield f'predict fails: {error}'


def _predict_error(detector: BaseDetector, size: int) -> str:
    """Say what goes wrong when a detector predicts, if anything does."""
    detector.eval()
    try:
        with torch.no_grad():
            data = detector.data_preprocessor(small_batch(detector, size), False)
            results = detector(**data, mode='predict')
    except Exception as error:
        return _one_line(error)
    done = sum('pred_instances' in x or 'pred_panoptic_seg' in x for x in results)
    return '' if done == 2 else f'{done} results for 2 images'


def small_batch(detector: BaseDetector, size: int) -> dict[str, list]:
    """Make two labelled images of random pixels, of 4 objects and 2, as a data loader gives them.

    They have everything that some detector asks for: masks, a semantic map and, without an RPN,
    proposals.

    Args:
        detector: Whose classes the labels are of.
        size: Side of the images in pixels.
    """
    num_classes = (
        count_classes(detector.student if isinstance(detector, Distiller) else detector) or 1
    )
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (2, 3, size, size), generator=generator, dtype=torch.uint8)
    samples = [_sample(index, size, count, num_classes) for index, count in enumerate((4, 2))]
    if not getattr(detector, 'with_rpn', True):
        for sample in samples:
            boxes = sample.gt_instances.bboxes + 2
            sample.proposals = InstanceData(bboxes=boxes, scores=torch.ones(len(boxes)))
    return {'inputs': list(images), 'data_samples': samples}


def _sample(index: int, size: int, num_objects: int, num_classes: int) -> DetDataSample:
    boxes = torch.tensor(BOXES[:num_objects]) * size
    masks = np.zeros((num_objects, size, size), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    sample = DetDataSample(
        metainfo=dict(
            img_id=index,
            img_path='',
            img_shape=(size, size),
            ori_shape=(size, size),
            scale_factor=(1.0, 1.0),
            flip=False,
            flip_direction=None,
            border=(0, size, 0, size),  # CenterNet's test pipeline gives it
        )
    )
    sample.gt_instances = InstanceData(
        bboxes=boxes,
        labels=torch.arange(num_objects) % num_classes,
        masks=BitmapMasks(masks, size, size),
    )
    sample.ignored_instances = InstanceData(
        bboxes=boxes.new_zeros(0, 4), labels=torch.zeros(0).long()
    )
    sample.gt_sem_seg = PixelData(sem_seg=torch.from_numpy(masks.max(0)[None]).long())
    return sample


def _with_gradient(module: torch.nn.Module) -> set[str]:
    return {name for name, p in module.named_parameters() if p.grad is not None}


def _name(config: Path) -> str:
    is_stock = config.is_relative_to(STOCK_CONFIGS)
    return str(config.relative_to(STOCK_CONFIGS) if is_stock else config)


def _one_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f'{type(error).__name__}: {text[0] if text else ""}'[:160]


def as_table(results: Sequence[SweepResult]) -> str:
    """Write results as a Markdown table with a line of totals."""
    trained = [x for x in results if x.stock_trains]
    distilled = [x for x in trained if x.distilled == 'ok']
    rows = [
        ('config', 'image size', 'channels of the levels', 'stock', 'distilled'),
        ('---',) * 5,
        *(x.cells() for x in results),
    ]
    table = '\n'.join(f'| {" | ".join(row)} |' for row in rows)
    return (
        f'{len(results)} configs, {sum(x.in_scope for x in results)} in scope: stock trains '
        f'{len(trained)}, distilled {len(distilled)} of them.\n\n{table}\n'
    )
