from collections.abc import Mapping

from torch import Tensor

from ..errors import ConfigError

ADVICE = (
    'Train again with a lower optim_wrapper.optimizer.lr, or with gradients clipped '
    '(optim_wrapper.clip_grad)'
)


def check_finite(weights: Mapping[str, Tensor]) -> None:
    """Refuse the weights of a run that has diverged.

    Args:
        weights: The weights by name.

    Raises:
        ConfigError: if any is infinite or not a number.
    """
    broken = [key for key, value in weights.items() if not value.isfinite().all()]
    if broken:
        raise ConfigError(
            f'{len(broken)} of {len(weights)} weights are not finite, the first is {broken[0]}: the '
            f'run diverged. {ADVICE}'
        )
