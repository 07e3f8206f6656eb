"""Writes config values as Python source, in the style of ``ruff format``."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

LINE_LENGTH = 100


class Expression(str):
    """Source text, to be written without quotes."""


def assignment(name: str, value: Any) -> str:
    """Write ``name = value``; a mapping's key None stands for a dict that the mapping adds to."""
    return _source(f'{name} = ', value, '', 0)


def _source(start: str, value: Any, end: str, indent: int) -> str:
    """Write ``start value end`` on one line, or each part of the value by itself."""
    if not isinstance(value, (Mapping, list, tuple)):
        return f'{start}{_scalar(value)}{end}'
    opening, parts, closing = _parts(value)
    line = ', '.join(_source(prefix, item, '', 0) for prefix, item in parts)
    comma = ',' if isinstance(value, tuple) and len(value) == 1 else ''
    line = f'{start}{opening}{line}{comma}{closing}{end}'
    if indent + len(line) <= LINE_LENGTH or not parts:
        return line
    inner = ' ' * (indent + 4)
    lines = [inner + _source(prefix, item, ',', indent + 4) for prefix, item in parts]
    return '\n'.join([f'{start}{opening}', *lines, f'{" " * indent}{closing}{end}'])


def _parts(value: Mapping | list | tuple) -> tuple[str, list[tuple[str, Any]], str]:
    """Split a container into its opening, its items with what precedes them, and its closing."""
    if not isinstance(value, Mapping):
        opening, closing = '[]' if isinstance(value, list) else '()'
        return opening, [('', item) for item in value], closing
    if all(key is None or key.isidentifier() for key in value):
        return 'dict(', [('' if k is None else f'{k}=', x) for k, x in value.items()], ')'
    return '{', [(f'{k!r}: ', x) for k, x in value.items()], '}'


def _scalar(value: Any) -> str:
    if isinstance(value, Expression):
        return str(value)
    if isinstance(value, float) and len(repr(value)) > 8:
        fraction = Fraction(value).limit_denominator(1000)
        if float(fraction) == value:
            return f'{fraction.numerator} / {fraction.denominator}'
    return repr(value)
