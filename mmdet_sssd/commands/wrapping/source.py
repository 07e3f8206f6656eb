"""Writes values as Python source."""

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from yapf.yapflib.yapf_api import FormatCode

LAYOUT = '{based_on_style: facebook, column_limit: 100}'


class Expression(str):
    """Source text, to be written without quotes."""


def laid_out(text: str) -> str:
    """Break the long lines of Python source; the last item on lines of their own gets a comma."""
    text, _ = FormatCode(text, style_config=LAYOUT)
    return re.sub(r'(?<=[^,(\[{])(?=\n *[)\]}])', ',', text)


def source(value: Any) -> str:
    """Write a value on one line."""
    if isinstance(value, Expression):
        return str(value)
    if isinstance(value, Mapping):
        if all(key.isidentifier() for key in value):
            return call('dict', **value)
        return '{' + ', '.join(f'{key!r}: {source(x)}' for key, x in value.items()) + '}'
    if isinstance(value, (list, tuple)):
        opening, closing = '[]' if isinstance(value, list) else '()'
        comma = ',' if isinstance(value, tuple) and len(value) == 1 else ''
        return f'{opening}{", ".join(map(source, value))}{comma}{closing}'
    if isinstance(value, float) and len(repr(value)) > 8:  # such as 1 / 6
        fraction = Fraction(value).limit_denominator(1000)
        if float(fraction) == value:
            return f'{fraction.numerator} / {fraction.denominator}'
    return repr(value)


def call(function: str, *args: Any, **settings: Any) -> str:
    """Write a call on one line."""
    given = [source(x) for x in args] + [f'{key}={source(x)}' for key, x in settings.items()]
    return f'{function}({", ".join(given)})'
