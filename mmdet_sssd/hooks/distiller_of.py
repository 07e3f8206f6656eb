from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from ..errors import ConfigError
from ..models import Distiller, SSSDDistiller
from ..models.terms import DistillTerm


def distiller_of(runner: Runner, hook: str, kind: type[Distiller] = Distiller) -> Distiller:
    """Find the distiller that a runner trains.

    Args:
        runner: The runner.
        hook: Name of the hook that needs it, for the error.
        kind: Which distiller the hook needs.

    Raises:
        ConfigError: if the runner's model is something else.
    """
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    if not isinstance(model, kind):
        raise ConfigError(
            f'{hook} needs model.type=SSSDDistiller{" or Distiller" * (kind is Distiller)}, found '
            f'{type(model).__name__}; remove the hook, or write '
            "model = dict(_delete_=True, type='SSSDDistiller', student=_base_.model)"
        )
    return model


def term_of(runner: Runner, hook: str, term: str | None) -> SSSDDistiller | DistillTerm:
    """Find what has the coefficient ``distill_coef`` and the flag ``detach_student``.

    Args:
        runner: The runner.
        hook: Name of the hook that asks, for the error.
        term: Name of one of the model's terms; None for the distillation of ``SSSDDistiller``.

    Raises:
        ConfigError: if there is none of that name, or another such hook would set it, too.
    """
    distiller = distiller_of(runner, hook)
    if sum(type(x).__name__ == hook and x.term == term for x in runner.hooks) > 1:
        raise ConfigError(
            f'there are two {hook} with term={term!r}, and each would undo what the other does; keep '
            'one in default_hooks and custom_hooks together'
        )
    if term is None and isinstance(distiller, SSSDDistiller):
        return distiller
    if term not in distiller.terms:
        own = ['None (of SSSDDistiller itself)'] * isinstance(distiller, SSSDDistiller)
        raise ConfigError(
            f'{hook}.term is {term!r}, which is none of model.terms; accepted: '
            f'{", ".join([*own, *distiller.terms])}'
        )
    return distiller.terms[term]
