"""Weights of losses or parameters, chosen by regular expressions on their names."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import ConfigError, check, is_number

Weights = Mapping[str, float]
"""Weights by regular expression: a name has that of the first one found in it, or else 1."""


def as_weights(key: str, weights: float | Weights) -> Weights:
    """Take a single number as the weight of all names.

    Args:
        key: The setting's key.
        weights: A number >= 0, or numbers by regular expression.

    Raises:
        ConfigError: if it is something else.
    """
    by_name = dict(weights) if isinstance(weights, Mapping) else {'': weights}
    accepted = all(is_number(x) for x in by_name.values()) and all(map(_is_pattern, by_name))
    check(key, weights, accepted, 'a number >= 0, or such numbers by name, as dict(cls=0.5)')
    return by_name


def weight_of(name: str, weights: Weights) -> float:
    """Look up a weight by name."""
    return next((weight for pattern, weight in weights.items() if re.search(pattern, name)), 1.0)


def check_names(key: str, weights: Weights, names: Iterable[str], what: str) -> None:
    """Refuse weights that are those of nothing.

    Args:
        key: The setting's key.
        weights: Its value.
        names: The names that there are.
        what: What they name.

    Raises:
        ConfigError: if an expression is found in none of them.
    """
    for pattern in weights:
        if not any(re.search(pattern, name) for name in names):
            raise ConfigError(
                f'has {pattern!r}, which is found in the name of no {what}; accepted: a regular '
                f'expression for some of {", ".join(names)}',
                key,
            )


def _is_pattern(name: Any) -> bool:
    try:
        re.compile(name)
    except (re.error, TypeError):
        return False
    return True
