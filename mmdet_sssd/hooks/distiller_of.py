from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from ..errors import ConfigError
from ..models import SSSDDistiller


def distiller_of(runner: Runner, hook: str) -> SSSDDistiller:
    """Find the distiller that a runner trains.

    Args:
        runner: The runner.
        hook: Name of the hook that needs it, for the error.

    Raises:
        ConfigError: if the runner's model is something else.
    """
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    if not isinstance(model, SSSDDistiller):
        raise ConfigError(
            f'{hook} needs model.type=SSSDDistiller, found {type(model).__name__}; remove the hook, '
            "or write model = dict(_delete_=True, type='SSSDDistiller', student=_base_.model)"
        )
    return model
