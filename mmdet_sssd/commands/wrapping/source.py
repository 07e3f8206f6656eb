"""Writes config values as Python source, in the style of ``ruff format``."""

from collections.abc import Mapping, Sequence
from typing import Any

LINE_LENGTH = 100


class Expression(str):
    """Source text, to be written without quotes."""


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
    """Write ``name = value`` on one line or, if it is too long, each part of the value on its own."""
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
