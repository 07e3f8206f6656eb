from mmdet.models import BaseDetector
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner

from ..errors import ConfigError
from ..models import Distiller, DistillTerm, Teacher


def bare_model(runner: Runner) -> BaseDetector:
    """Unwrap the model of a runner from DDP and test-time augmentation."""
    model = runner.model
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def find_distiller(runner: Runner, hook: Hook) -> Distiller:
    """Find the distiller that a runner trains.

    Args:
        runner: The runner.
        hook: The hook that needs the distiller, for the error.

    Raises:
        ConfigError: if the runner's model is not a distiller.
    """
    model = bare_model(runner)
    if not isinstance(model, Distiller):
        raise ConfigError(
            f'{type(hook).__name__} needs model.type=SSSDDistiller or Distiller, found '
            f'{type(model).__name__}; remove the hook, or write '
            "model = dict(_delete_=True, type='SSSDDistiller', student=_base_.model)"
        )
    return model


def find_detector(runner: Runner) -> BaseDetector:
    """Find the detector that a runner trains or tests: a distiller's student, or the model itself."""
    model = bare_model(runner)
    return model.student if isinstance(model, Distiller) else model


def find_part(runner: Runner, hook: Hook, kind: str) -> DistillTerm | Teacher:
    """Find the part whose name is in a hook's attribute ``kind``: ``'term'`` or ``'teacher'``.

    Raises:
        ConfigError: if the model has no such part, or another hook of this type sets it too.
    """
    parts, name = getattr(find_distiller(runner, hook), f'{kind}s'), getattr(hook, kind)
    where = type(hook).__name__
    if name not in parts:
        raise ConfigError(
            f'is {name!r}; accepted: the name of one of model.{kind}s: {", ".join(parts) or "none"}',
            f'{where}.{kind}',
        )
    if sum(type(x) is type(hook) and getattr(x, kind) == name for x in runner.hooks) > 1:
        raise ConfigError(
            f'there are two {where} with {kind}={name!r}, and each would undo what the other does; '
            'keep one in default_hooks and custom_hooks together'
        )
    return parts[name]
