"""Finds out which detectors can be distilled, by a training step of each, stock and distilled."""

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
from mmdet.utils import register_all_modules
from mmengine.config import Config, ConfigDict
from mmengine.logging import MessageHub, MMLogger
from mmengine.structures import InstanceData
from rich.console import Console
from rich.progress import track
from torch import Tensor

from ..config_tree import nested_configs
from ..datasets.branches import LABELLED, UNLABELLED
from ..errors import ConfigError, within
from ..models import Distiller, SemiDistiller, probe
from ..models.distiller import is_distiller
from ..models.student import check_scope, count_classes
from .random_batch import labelled_sample
from .training_steps import without_weights

STOCK_CONFIGS = Path(mmdet.__file__).parent / '.mim/configs'
IMAGE_SIZES = (128, 320, 512)  # pixels a side; SSD and CornerNet, for example, fail on small ones
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
    """The result for one config.

    Attributes:
        config: Its path; relative to mmdet's folder of configs if it is in there.
        stock: ``'ok'`` if the stock detector trained a step, or why it did not.
        distilled: ``'ok'`` if the distilled detector did and passed all checks, or what differed;
            empty if stock did not train.
        in_scope: Whether this package intends to support the model.
        levels: Channels of the feature levels.
        image_size: Side of the images in pixels.
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
        """Make the cells of the config's row in the table."""
        levels = ', '.join(map(str, self.levels))
        stock = self.stock if self.in_scope else f'out of scope: {self.stock}'
        return self.config, str(self.image_size or ''), levels, stock, self.distilled


def sweep(names: Sequence[str], memory: float, seconds: float, out: Path | None = None) -> None:
    """Check configs one by one, and print the table or write it as it grows.

    Args:
        names: What :func:`find_configs` takes.
        memory: Memory limit of a check's process in GiB.
        seconds: Time limit of a check.
        out: File for the table. None prints it.

    Raises:
        ConfigError: if a file or folder does not exist.
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
    """Find config files by path, or by the name of one of mmdet's folders of configs.

    Args:
        names: Paths of configs or folders, or names of mmdet's folders. Empty: all of these.

    Returns:
        Lists of configs to try until the stock detector trains: one for each config file, and one
        for each of mmdet's folders, with its three smallest models, judged by the files' names.

    Raises:
        ConfigError: if a name is neither a file nor a folder with configs.
    """
    folders = sorted(p.name for p in STOCK_CONFIGS.iterdir() if p.name != '_base_')
    found = {name: _find(name) for name in names or folders}
    if names and (missing := [name for name, tries in found.items() if not tries]):
        raise ConfigError(
            f'{missing[0]} not found; accepted: a config file, a folder with configs, or the name '
            "of one of mmdet's folders of configs"
        )
    return [configs for tries in found.values() for configs in tries]


def _find(name: str) -> list[list[Path]]:
    if Path(name).is_file():
        return [[Path(name)]]
    in_folder = sorted(Path(name).glob('*.py'))
    if in_folder:
        return [[path] for path in in_folder]
    smallest = sorted((STOCK_CONFIGS / name).glob('*.py'), key=_size_by_name)[:3]
    return [smallest] if smallest else []


def _size_by_name(path: Path) -> tuple[bool, bool, int, str]:
    name = path.stem
    is_small, is_large = (any(mark in name for mark in marks) for marks in (SMALL, LARGE))
    return is_large, not is_small, len(name), name


def check_apart(configs: Sequence[Path], memory: float, seconds: float) -> SweepResult:
    """Run :func:`check_config` in separate processes, which may crash, until stock trains.

    Args:
        configs: One or more config files to try.
        memory: Memory limit of a process in GiB.
        seconds: Time limit of a process.

    Returns:
        The result of the first config that stock trains; without any, of the first config.
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
    context = multiprocessing.get_context('fork')  # mmdet is imported already
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
    MMLogger.get_current_instance().setLevel(logging.ERROR)  # no line for each weight
    sender.send(check_config(config))


def check_config(config: Path) -> SweepResult:
    """Train a step of a config's detector, stock and distilled, from random weights on small images.

    If the config has a distiller, the stock detector is its student. The distilled step is ok if the
    student's losses and buffers equal the stock detector's, all parameters that get a gradient in
    stock get one, all trained parameters of teacher and adapter get one, and the student predicts.
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
    """Read a config's distiller, or make one for its detector, to train from random weights.

    No weights are downloaded, not even a pretrained teacher's, and BN replaces SyncBN. BN uses batch
    statistics (``norm_eval=False``): with running ones deep random backbones would overflow.

    Raises:
        ConfigError: if the config has no model.
    """
    if 'model' not in config:
        raise ConfigError('the config has no model')
    model = copy.deepcopy(config.model)
    if not is_distiller(model):
        model = ConfigDict(type='SSSDDistiller', student=model)
    if 'data_preprocessor' in config and 'data_preprocessor' not in model.student:
        model.student.data_preprocessor = copy.deepcopy(config.data_preprocessor)
    for _, part in nested_configs(without_weights(model)):
        if 'norm_eval' in part:
            part['norm_eval'] = False
        if part.get('type') in ('SyncBN', 'MMSyncBN', 'NaiveSyncBN'):
            part['type'] = 'BN'
    return model


class StockStep:
    """A training step of a stock detector, to compare a distilled one with.

    Args:
        model: The detector's config.
        size: Side of the two images in pixels.

    Attributes:
        size: Side of the two images in pixels.
        weights: State dict before the step.
        losses: The losses, by name.
        with_gradient: Names of the parameters that got a gradient.
        buffers: All buffers after the step, by name.
        predict_error: Why the stock detector cannot predict; empty if it can.
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
    progress = MessageHub.get_current_instance()  # heads read a runner's progress there
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
    """Train the distilled step; returns ``'ok'`` or what differs, and the channels of the levels."""
    try:
        torch.manual_seed(0)  # some weights, as of LAD's teacher, are not in the state dict
        model = MODELS.build(copy.deepcopy(distiller))
        model.init_weights()
        model.load_state_dict(stock.weights, strict=False)
        model.train()
        losses = train_step(model, stock.size)
        levels = probe(model.student).channels
        return '; '.join(_differences(model, losses, stock)) or 'ok', levels
    except Exception as error:
        return _one_line(error), ()


def _differences(model: Distiller, losses: dict[str, Tensor], stock: StockStep) -> Iterator[str]:
    """Describe differences from stock, and missing gradients of teacher and adapter."""
    for name, value in stock.losses.items():
        if name not in losses or not torch.equal(losses[name], value):
            yield f'{name} differs'
    if missing := sorted(stock.with_gradient - _with_gradient(model.student)):
        yield f'{len(missing)} parameters of the student lack a gradient, such as {missing[0]}'
    for part, module in model.named_children():
        trained = {name for name, x in module.named_parameters() if x.requires_grad}
        names = trained - _with_gradient(module)
        if part != 'student' and names:
            yield f'{len(names)} parameters of the {part} lack a gradient, such as {min(names)}'
    if not isinstance(model, SemiDistiller):  # its BN statistics cover unlabelled images too
        for name, value in model.student.named_buffers():
            if not torch.equal(value, stock.buffers[name]):
                yield f'buffer {name} differs'
    if not all(x.isfinite().all() for x in losses.values()):
        yield 'a loss is not finite'
    if not stock.predict_error and (error := _predict_error(model, stock.size)):
        yield f'predict fails: {error}'


def _predict_error(detector: BaseDetector, size: int) -> str:
    """Describe the error when a detector predicts; empty if it succeeds."""
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
    """Make a batch of two random images with 4 and 2 objects, as a data loader does.

    Detectors without an RPN also get proposals.

    Args:
        detector: The detector; the objects have its classes.
        size: Side of the images in pixels.
    """
    num_classes = (
        count_classes(detector.student if isinstance(detector, Distiller) else detector) or 1
    )
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (2, 3, size, size), generator=generator, dtype=torch.uint8)
    samples = [
        labelled_sample(
            index,
            (size, size),
            boxes=torch.tensor(BOXES[:num_objects]) * size,
            labels=torch.arange(num_objects) % num_classes,
        )
        for index, num_objects in enumerate((4, 2))
    ]
    if not getattr(detector, 'with_rpn', True):
        for sample in samples:
            boxes = sample.gt_instances.bboxes + 2
            sample.proposals = InstanceData(bboxes=boxes, scores=torch.ones(len(boxes)))
    return {'inputs': list(images), 'data_samples': samples}


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
