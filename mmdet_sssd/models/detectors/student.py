"""What a distiller has to know of the detector that is its student, read off the detector itself."""

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models import RPN, BaseDetector, Detectron2Wrapper, RPNHead, SemiBaseDetector
from mmdet.registry import MODELS
from mmdet.utils import ConfigType, OptConfigType
from torch import Tensor

from ...errors import ConfigError
from ..config_class import class_of
from .replay import head_modules

DRY_RUN_SIZE = 320  # pixels a side; SSD needs more than 256


def build_student(student: ConfigType, data_preprocessor: OptConfigType) -> BaseDetector:
    """Build the detector that is to be distilled.

    Args:
        student: Its config.
        data_preprocessor: Config of the data preprocessor for a student that names none.

    Raises:
        ConfigError: if it is no config of a detector, or of one that cannot be distilled.
    """
    if not isinstance(student, dict) or 'type' not in student:
        raise ConfigError(f'model.student is {student!r}; accepted: the config of a detector')
    check_scope(student)
    if data_preprocessor is not None and student.get('data_preprocessor') is None:
        student = {**student, 'data_preprocessor': data_preprocessor}
    try:
        return MODELS.build(student)
    except (TypeError, KeyError) as error:
        raise ConfigError(
            f'model.student ({student["type"]}) cannot be built: {error}; accepted: a whole config of '
            'a detector that mmdet builds alone'
        ) from error


def check_scope(student: ConfigType, key: str = 'model.student') -> None:
    """Make sure that a model is a detector of the kind that can be distilled, by its config alone.

    Args:
        student: The config.
        key: Its place in the config of the run, for the error.

    Raises:
        ConfigError: if it is not; the message says what it is instead.
    """
    student_type = student['type']
    cls = class_of(student)
    if cls is None:
        reason = (
            "which no package has registered; accepted: the type of a detector of mmdet's, or of one "
            'that a module in custom_imports registers'
        )
    elif not (isinstance(cls, type) and issubclass(cls, BaseDetector)):
        reason = (
            "which is no detector; accepted: a detector of mmdet's (a subclass of BaseDetector). "
            'Trackers and re-identification models cannot be distilled: distill the detector that '
            'they contain'
        )
    elif issubclass(cls, SemiBaseDetector):
        reason = 'which trains two detectors on mixed batches; distill the detector in it'
    elif issubclass(cls, Detectron2Wrapper):
        reason = "which has a detectron2 model inside; accepted: mmdet's own detectors"
    elif 'language_model' in student:
        reason = 'which reads texts too; accepted: detectors that take images alone'
    else:
        return
    raise ConfigError(f'{key}.type is {student_type!r}, {reason}')


def deployed_model(config: dict) -> dict:
    """Take the config of the detector that is deployed out of a run's config.

    Args:
        config: The run's config, of a stock detector or of a distiller; it is left as it is.

    Returns:
        ``model`` or ``model.student``, with the data preprocessor that stands outside if it names
        none. Empty if there is no model.
    """
    owner = config.get('model') or {}
    model = owner.get('student') or owner
    own = (x['data_preprocessor'] for x in (model, owner, config) if x.get('data_preprocessor'))
    found = of_one_branch(next(own, None))
    return {**model, 'data_preprocessor': found} if found else model


def of_one_branch(data_preprocessor: OptConfigType) -> OptConfigType:
    """Take the data preprocessor's config out of that of one for multi-branch batches."""
    if data_preprocessor and 'data_preprocessor' in data_preprocessor:
        return data_preprocessor['data_preprocessor']
    return data_preprocessor


def count_classes(student: BaseDetector) -> int:
    """Read the number of classes off a detector's heads; an RPN takes all classes for one.

    Raises:
        ConfigError: if none of them has a ``num_classes``.
    """
    if isinstance(student, RPN):
        return 1
    heads = [m for m in head_modules(student) if not isinstance(m, RPNHead)]
    counts = [m.num_classes for m in heads if isinstance(getattr(m, 'num_classes', None), int)]
    if not counts:
        raise ConfigError(
            f'model.student is a {type(student).__name__} without a num_classes in any of its heads; '
            'set model.teacher.num_classes'
        )
    return counts[0]


def read_channels(student: BaseDetector) -> tuple[int, ...]:
    """Find the channels of each of a student's feature levels; errors as in :func:`blank_pyramid`."""
    hint = (
        '. If it runs on a GPU alone, give the channels of its feature levels: '
        'model.teacher.in_channels and model.adapter.in_channels, such as [256, 256, 256]'
    )
    return tuple(x.shape[1] for x in blank_pyramid(student, hint=hint))


def blank_pyramid(
    detector: BaseDetector, key: str = 'model.student', hint: str = ''
) -> Sequence[Tensor]:
    """Extract a detector's features from a blank image of 320×320 on the CPU.

    Args:
        detector: The detector; it stays in the mode it is in.
        key: Its place in the config, for errors.
        hint: What the user can do where this fails.

    Returns:
        Its feature levels of shape (1, C, h, w).

    Raises:
        ConfigError: if that fails or its result is not a pyramid.
    """
    was_training = detector.training
    detector.eval()
    try:
        with torch.no_grad():
            feats = detector.extract_feat(torch.zeros(1, 3, DRY_RUN_SIZE, DRY_RUN_SIZE))
    except Exception as error:
        raise ConfigError(
            f'{key} ({type(detector).__name__}) cannot be distilled: its extract_feat failed '
            f'on a blank {DRY_RUN_SIZE}×{DRY_RUN_SIZE} image on the CPU ({type(error).__name__}: '
            f'{error}){hint}'
        ) from error
    finally:
        detector.train(was_training)
    if not _is_pyramid(feats):
        raise ConfigError(
            f'{key} ({type(detector).__name__}): its extract_feat gives a '
            f'{type(feats).__name__}; accepted: a tuple of maps of shape (B, C, h, w), one per level'
        )
    return feats


def _is_pyramid(feats: Any) -> bool:
    """Tell whether this is a sequence of maps of shape (B, C, h, w), one or more."""
    is_sequence = isinstance(feats, (tuple, list)) and len(feats) > 0
    return is_sequence and all(isinstance(x, Tensor) and x.ndim == 4 for x in feats)
