"""What a distiller has to know of the detector that is its student, read off the detector itself."""

from mmdet.models import RPN, BaseDetector, Detectron2Wrapper, RPNHead, SemiBaseDetector
from mmdet.registry import MODELS
from mmdet.utils import ConfigType, OptConfigType

from ..errors import ConfigError, user_error, within
from .building import class_of
from .replay import head_modules


def build_student(student: ConfigType, data_preprocessor: OptConfigType) -> BaseDetector:
    """Build the detector that is to be distilled.

    Args:
        student: Its config.
        data_preprocessor: Config of the data preprocessor for a student that names none.

    Raises:
        ConfigError: if it is no config of a detector, or of one that cannot be distilled.
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
            f'{error}; accepted: a whole config of a detector that mmdet builds alone'
        )
        raise ConfigError(f'model.student ({student["type"]}) cannot be built: {reason}') from error


def check_scope(student: ConfigType) -> None:
    """Refuse, by its config alone, a model that is no detector of the kind that can be distilled.

    Args:
        student: The config.

    Raises:
        ConfigError: if it is something else; the message says what.
    """
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
    elif 'student' in student:
        reason = 'which distills a student already; accepted: the config of that student alone'
    elif issubclass(cls, SemiBaseDetector):
        reason = 'which trains two detectors on mixed batches; distill the detector in it'
    elif issubclass(cls, Detectron2Wrapper):
        reason = "which has a detectron2 model inside; accepted: mmdet's own detectors"
    elif 'language_model' in student:
        reason = 'which reads texts too; accepted: detectors that take images alone'
    else:
        return
    raise ConfigError(f'is {student["type"]!r}, {reason}', 'type')


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


def count_classes(student: BaseDetector) -> int | None:
    """Read the number of classes off a detector's heads; an RPN takes all classes for one.

    Returns:
        The number; None if none of them has a ``num_classes``.
    """
    if isinstance(student, RPN):
        return 1
    heads = [m for m in head_modules(student) if not isinstance(m, RPNHead)]
    counts = [m.num_classes for m in heads if isinstance(getattr(m, 'num_classes', None), int)]
    return counts[0] if counts else None
