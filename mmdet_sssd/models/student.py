"""Builds and checks the student, and reads its properties."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from mmdet.models import RPN, BaseDetector, Detectron2Wrapper, SemiBaseDetector
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmdet.utils import ConfigType, OptConfigType
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ..errors import ConfigError, user_error, within
from .building import config_class
from .dense_head import outputs_from_feats
from .replay import DetectorOutputs, head_modules

if TYPE_CHECKING:
    from .teachers import Teacher

PROBE_SIZE = 320  # pixels a side; SSD needs more than 256


def build_student(student: ConfigType, data_preprocessor: OptConfigType) -> BaseDetector:
    """Build the student.

    Args:
        student: The detector's config.
        data_preprocessor: Data preprocessor config for a student without one.

    Raises:
        ConfigError: if ``student`` is not the config of a detector that can be distilled.
    """
    if not isinstance(student, dict) or 'type' not in student:
        raise ConfigError(f'is {student!r}; accepted: the config of a detector', 'model.student')
    with within('model.student'):
        check_scope(student)
    if data_preprocessor is not None and student.get('data_preprocessor') is None:
        student = {**student, 'data_preprocessor': data_preprocessor}
    try:
        return MODELS.build(student)
    except (TypeError, KeyError) as error:
        reason = user_error(error) or (
            f'{error}; accepted: the complete config of a detector that mmdet builds by itself'
        )
        raise ConfigError(f'model.student ({student["type"]}) cannot be built: {reason}') from error


def check_scope(student: ConfigType) -> None:
    """Check by its config that a model is a detector that can be distilled.

    Args:
        student: The model's config.

    Raises:
        ConfigError: if the model is of another kind; the message says which.
    """
    cls = config_class(student)
    if cls is None:
        reason = (
            "which no package has registered; accepted: the type of one of mmdet's detectors, or "
            'of one that a module in custom_imports registers'
        )
    elif not (isinstance(cls, type) and issubclass(cls, BaseDetector)):
        reason = (
            "which is not a detector; accepted: a detector of mmdet's (a subclass of BaseDetector). "
            'Trackers and re-identification models cannot be distilled: distill the detector that '
            'they contain'
        )
    elif 'student' in student:
        reason = 'which distills a student already; accepted: the config of that student alone'
    elif issubclass(cls, SemiBaseDetector):
        reason = 'which trains two detectors on mixed batches; distill the detector in it'
    elif issubclass(cls, Detectron2Wrapper):
        reason = "which wraps a detectron2 model; accepted: mmdet's own detectors"
    elif cls.__name__ == 'CLRNet':  # OneDL's
        reason = 'which detects lines; accepted: detectors of objects with boxes'
    elif 'language_model' in student:
        reason = 'which also reads text; accepted: detectors that take images only'
    else:
        return
    raise ConfigError(f'is {student["type"]!r}, {reason}', 'type')


def deployed_model(config: dict) -> dict:
    """Extract the config of the deployed detector from a run's config.

    Args:
        config: Config of a run with a stock detector or a distiller; not changed.

    Returns:
        ``model`` or ``model.student``, with the outer data preprocessor if it has none itself. Empty
        without a model.
    """
    owner = config.get('model') or {}
    model = owner.get('student') or owner
    own = (x['data_preprocessor'] for x in (model, owner, config) if x.get('data_preprocessor'))
    found = single_branch_preprocessor(next(own, None))
    return {**model, 'data_preprocessor': found} if found else model


def single_branch_preprocessor(data_preprocessor: OptConfigType) -> OptConfigType:
    """Unwrap the config of a multi-branch data preprocessor; return others unchanged."""
    if data_preprocessor and 'data_preprocessor' in data_preprocessor:
        return data_preprocessor['data_preprocessor']
    return data_preprocessor


def count_classes(model: BaseDetector) -> int | None:
    """Read the number of classes off a detector's heads, or off a distiller's student or teachers.

    Returns:
        The number, 1 for an RPN; None if neither a head nor a teacher has ``num_classes``.
    """
    detector, teachers = getattr(model, 'student', model), getattr(model, 'teachers', {})
    if isinstance(detector, RPN):
        return 1
    heads = [
        module
        for path, module in head_modules(detector).items()
        if path and not re.search(r'rpn_head(\.|$)', path)  # a detector may count stuff, too
    ]
    heads += teachers.values()
    counts = [x.num_classes for x in heads if isinstance(getattr(x, 'num_classes', None), int)]
    return counts[0] if counts else None


def probe(student: BaseDetector) -> DetectorOutputs:
    """Run a student's backbone and neck on a blank 320×320 image, on the CPU, for the shapes.

    It runs once per student; the values are those of the first call's weights.

    Raises:
        ConfigError: if ``extract_feat`` fails or does not return feature levels.

    Example:
        >>> probe(student).channels
        (256, 256, 256, 256, 256)
    """
    if student in _probed:
        return _probed[student]
    name = f'({type(student).__name__})'
    try:
        with _evaluated(student):
            feats = student.extract_feat(_blank_batch()[0])
    except Exception as error:
        raise ConfigError(
            f'{name} cannot be distilled: its extract_feat failed on a blank {PROBE_SIZE}×{PROBE_SIZE} '
            f'image on the CPU ({type(error).__name__}: {error}). If it only runs on a GPU, '
            'give SSSDDistiller the channels of its feature levels: model.teacher.in_channels '
            'and model.adapter.in_channels, such as [256, 256, 256]',
            'model.student',
        ) from error
    is_sequence = isinstance(feats, Sequence) and len(feats) > 0
    if not (is_sequence and all(isinstance(x, Tensor) and x.ndim == 4 for x in feats)):
        raise ConfigError(
            f'{name}: its extract_feat gives a {type(feats).__name__}; accepted: a tuple of '
            'maps of shape (B, C, h, w), one per level',
            'model.student',
        )
    _probed[student] = DetectorOutputs(feats)
    return _probed[student]


_probed: WeakKeyDictionary[BaseDetector, DetectorOutputs] = WeakKeyDictionary()


def probe_pair(
    student: BaseDetector, teacher: Teacher, with_head: bool = False
) -> tuple[DetectorOutputs, DetectorOutputs]:
    """Run a student and a teacher on the blank image of :func:`probe`, for the shapes.

    Args:
        student: The student.
        teacher: One of its teachers. The student's head serves a trained one.
        with_head: Whether to run their dense heads, too.

    Raises:
        ConfigError: if a detector or, on the CPU, a head fails.
    """
    outputs = probe(student)
    images, samples = _blank_batch()
    needed_head, teacher.needs_head = teacher.needs_head, with_head
    try:
        with _evaluated(student), _evaluated(teacher), within(*teacher.config_keys):
            of_teacher = teacher.probe(student, outputs, images, samples)
            if with_head and teacher.is_trained:
                of_teacher = outputs_from_feats(student, of_teacher.feats, with_head)
            return outputs_from_feats(student, outputs.feats, with_head), of_teacher
    except RuntimeError as error:
        if not with_head:
            raise
        raise ConfigError(
            f'a head of student or teacher failed on a blank {PROBE_SIZE}×{PROBE_SIZE} image on the '
            f'CPU ({error}); accepted where heads are compared: heads that run on a CPU'
        ) from error
    finally:
        teacher.needs_head = needed_head


def _blank_batch() -> tuple[Tensor, list[DetDataSample]]:
    size = (PROBE_SIZE, PROBE_SIZE)
    sample = DetDataSample(metainfo=dict(img_shape=size))
    sample.gt_instances = InstanceData(
        bboxes=torch.zeros(0, 4),
        labels=torch.zeros(0, dtype=torch.long),
        masks=BitmapMasks([], *size),
    )
    return torch.zeros(1, 3, *size), [sample]


@contextmanager
def _evaluated(module: nn.Module) -> Iterator[None]:
    """Put a module in eval mode, without gradients."""
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(was_training)
