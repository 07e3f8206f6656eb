"""Makes mmengine read and write configs faster; to be imported where many are.

Reading one of ``mmdet::`` loads all of mmdet's metafiles, and writing one lays out its text by yapf,
which a runner does some ten times: together they take longer than the rest of a small run. That the
laid out text reads back too is tested in ``test_configs.py``.
"""

import functools
from unittest.mock import patch

import mmengine.config.config
import mmengine.config.utils
from mmengine.config import Config


def as_it_is(text: str, **_) -> tuple[str, bool]:
    """Do what yapf does but for the layout: refuse what is not Python, and end the last line."""
    compile(text, 'config', 'exec')
    return f'{text}\n', False


def quick_text(config: Config) -> str:
    """Write a config; OneDL's mmengine imports yapf's function where it is called."""
    with (
        patch.object(mmengine.config.config, 'FormatCode', as_it_is, create=True),
        patch('yapf.yapflib.yapf_api.FormatCode', as_it_is),
    ):
        return laid_out.fget(config)


laid_out = Config.pretty_text
Config.pretty_text = property(quick_text)
mmengine.config.utils.load = functools.cache(mmengine.config.utils.load)
