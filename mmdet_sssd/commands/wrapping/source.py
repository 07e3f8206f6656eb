"""Writes config values as Python source, laid out as ``ruff format`` would leave it."""

from collections.abc import Mapping, Sequence
from typing import Any

LINE_LENGTH = 100


class Expression(str):
    """Source text that is to be written as it is, not as a string."""


def source(value: Any) -> str:
    """Write a value on one line."""
    if isinstance(value, Expression):
        return str(value)
    if isinstance(value, Mapping):
        return f'dict({", ".join(_parts(value))})'
    if isinstance(value, list):
        return f'[{", ".join(map(source, value))}]'
    if isinstance(value, tuple):
        return f'({", ".join(map(source, value))}{"," if len(value) == 1 else ""})'
    return repr(value)


def assignment(name: str, value: Any) -> str:
    """Write ``name = value`` on one line, or with a line for each part of the value if too long."""
    line = f'{name} = {source(value)}'
    if len(line) <= LINE_LENGTH or not isinstance(value, (Mapping, list, tuple)):
        return line
    lines = [f'    {part},' for part in _parts(value)]
    start = 'dict(' if isinstance(value, Mapping) else '[' if isinstance(value, list) else '('
    return '\n'.join([f'{name} = {start}', *lines, ']' if start == '[' else ')'])


def _parts(value: Mapping | Sequence) -> list[str]:
    if isinstance(value, Mapping):
        return [f'{key}={source(item)}' for key, item in value.items()]
    return [source(item) for item in value]
