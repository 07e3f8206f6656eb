"""Makes mmengine read and write configs faster; to be imported where many are.

Reading one of ``mmdet::`` loads all of mmdet's metafiles, and writing one lays out its text by yapf,
which a runner does some ten times: together they take longer than the rest of a small run. That the
laid out text reads back too is tested in ``test_configs.py``.
"""

import functools

import mmengine.config.config
import mmengine.config.utils


def as_it_is(text: str, **_) -> tuple[str, bool]:
    """Do what yapf does but for the layout: refuse what is not Python, and end the last line."""
    compile(text, 'config', 'exec')
    return f'{text}\n', False


laid_out = mmengine.config.config.FormatCode
mmengine.config.config.FormatCode = as_it_is
mmengine.config.utils.load = functools.cache(mmengine.config.utils.load)
