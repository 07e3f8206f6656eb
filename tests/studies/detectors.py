"""Finds out which detectors can be distilled, by a training step of each, stock and distilled.

    python -m tests.studies.detectors [CONFIG or name of a folder of mmdet's configs ...] --out table.md

Without names it checks each of mmdet's folders, by the first of its three smallest models that stock
trains. Random weights, two small random images, on the CPU, each config in a process of its own.
"""

import copy
import gc
import logging
import multiprocessing
import resource
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import dataclass
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
from torch import Tensor

from mmdet_sssd import ConfigError
from mmdet_sssd.commands.random_batch import labelled_sample
from mmdet_sssd.commands.training_steps import without_weights
from mmdet_sssd.config_tree import nested_configs
from mmdet_sssd.datasets.branches import LABELLED, UNLABELLED
from mmdet_sssd.errors import within
from mmdet_sssd.models import Distiller, SemiDistiller, probe
from mmdet_sssd.models.distiller import is_distiller
from mmdet_sssd.models.student import check_scope, count_classes

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
class Result:
    """A row of the table; ``stock`` and ``distilled`` are ``'ok'`` or say what went wrong."""

    config: str
    image_size: int = 0
    levels: tuple[int, ...] = ()
    stock: str = ''
    distilled: str = ''

    def __str__(self) -> str:
        levels = ', '.join(map(str, self.levels))
        cells = (self.config, self.image_size or '', levels, self.stock, self.distilled)
        return f'| {" | ".join(map(str, cells))} |'


def main() -> None:
    parser = ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('names', nargs='*')
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--memory', type=float, default=14, help='GiB of a check')
    parser.add_argument('--seconds', type=float, default=900, help='of a check')
    args = parser.parse_args()
    folders = sorted(p.name for p in STOCK_CONFIGS.iterdir() if p.name != '_base_')
    rows = [
        '| config | image size | channels of the levels | stock | distilled |',
        '|---|---|---|---|---|',
    ]
    for name in args.names or folders:
        smallest = sorted((STOCK_CONFIGS / name).glob('*.py'), key=size_by_name)[:3]
        results = []
        for config in smallest or [Path(name)]:
            results.append(check_apart(config, args.memory, args.seconds))
            if results[-1].stock.startswith('ok'):
                results = results[-1:]
                break
        rows.append(str(results[0]))
        print(rows[-1], flush=True)
        args.out.write_text('\n'.join(rows) + '\n', encoding='utf-8')


def size_by_name(path: Path) -> tuple[bool, bool, int, str]:
    is_small, is_large = (any(mark in path.stem for mark in marks) for marks in (SMALL, LARGE))
    return is_large, not is_small, len(path.stem), path.stem


def check_apart(config: Path, memory: float, seconds: float) -> Result:
    """Run :func:`check_config` in a process of its own, which may crash."""
    context = multiprocessing.get_context('fork')  # mmdet is imported already
    register_all_modules()
    receiver, sender = context.Pipe(duplex=False)

    def check() -> None:
        limit = int(memory * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        MMLogger.get_current_instance().setLevel(logging.ERROR)  # no line for each weight
        sender.send(check_config(config))

    process = context.Process(target=check)
    process.start()
    sender.close()
    try:
        if receiver.poll(seconds):
            return receiver.recv()
        return Result(config.name, stock=f'took more than {seconds:.0f} s')
    except EOFError:
        return Result(config.name, stock='crashed')
    finally:
        process.kill()


def check_config(config: Path) -> Result:
    """Train a step of a config's detector, stock and distilled, from random weights on small images.

    If the config has a distiller, the stock detector is its student. The distilled step is ok if the
    student's losses and buffers equal the stock detector's, all parameters that get a gradient in
    stock get one, all trained parameters of teacher and adapter get one, and the student predicts.
    """
    result = Result(_name(config))
    try:
        distiller = cpu_distiller(Config.fromfile(config))
        with within('model.student'):
            check_scope(distiller.student)
    except ConfigError as error:
        result.stock = f'out of scope: {_one_line(error)}'
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
    """A training step of a stock detector on two images, to compare a distilled one with."""

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
    """
    num_classes = count_classes(detector) or 1
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


if __name__ == '__main__':
    main()
