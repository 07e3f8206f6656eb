"""Weights of losses or parameters by regular expressions on their names."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import ConfigError, check, is_number

Weights = Mapping[str, float]
"""Weights by regular expression: the first expression found in a name counts; otherwise 1."""


def as_weights(key: str, weights: float | Weights) -> Weights:
    """Turn a single number into a weight for all names.

    Args:
        key: The setting's key.
        weights: A number >= 0, or such numbers by regular expression.

    Raises:
        ConfigError: if a weight is negative or not a number, or an expression is invalid.
    """
    by_name = dict(weights) if isinstance(weights, Mapping) else {'': weights}
    accepted = all(is_number(x) for x in by_name.values()) and all(map(_is_pattern, by_name))
    check(key, weights, accepted, 'a number >= 0, or such numbers by name, such as dict(cls=0.5)')
    return by_name


def find_weight(name: str, weights: Weights) -> float:
    """Look up the weight of a name."""
    return next((weight for pattern, weight in weights.items() if re.search(pattern, name)), 1.0)


def check_names(key: str, weights: Weights, names: Iterable[str], what: str) -> None:
    """Refuse expressions that match no name.

    Args:
        key: The setting's key.
        weights: The setting's value.
        names: All names.
        what: The kind of thing they name, for the error.

    Raises:
        ConfigError: if an expression is found in none of the names.
    """
    for pattern in weights:
        if not any(re.search(pattern, name) for name in names):
            raise ConfigError(
                f'has {pattern!r}, which matches no {what}; accepted: regular expressions that match '
                f'some of {", ".join(names)}',
                key,
            )


def _is_pattern(name: Any) -> bool:
    try:
        re.compile(name)
    except (re.error, TypeError):
        return False
    return True
