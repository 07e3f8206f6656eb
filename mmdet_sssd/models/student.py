"""Builds and checks the student, and reads its properties."""

from mmdet.models import RPN, BaseDetector, Detectron2Wrapper, SemiBaseDetector
from mmdet.registry import MODELS
from mmdet.utils import ConfigType, OptConfigType

from ..errors import ConfigError, user_error, within
from .building import config_class
from .replay import head_modules


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


def count_classes(student: BaseDetector) -> int | None:
    """Read the number of classes from a detector's heads; 1 for an RPN.

    Returns:
        The number; None if no head has ``num_classes``.
    """
    if isinstance(student, RPN):
        return 1
    rpn_heads = [m for name, m in student.named_modules() if name.endswith('rpn_head')]
    class_agnostic = {m for head in rpn_heads for m in head.modules()}
    heads = [m for m in head_modules(student) if m not in class_agnostic]
    counts = [m.num_classes for m in heads if isinstance(getattr(m, 'num_classes', None), int)]
    return counts[0] if counts else None
