"""Checks that a config imports this package where it uses it."""

from mmengine.config import Config

from .. import hooks, models
from ..errors import ConfigError

PACKAGE = __name__.partition('.')[0]


def check_custom_imports(cfg: Config) -> None:
    """Make sure that a config that names modules of this package imports it.

    The tools of this package have imported it anyway; but a run's config, as written to its work
    directory, would be of no use to others.

    Args:
        cfg: The whole config.

    Raises:
        ConfigError: if the model or a hook is of this package and ``custom_imports`` lacks it.
    """
    used = [f'model.type={name}' for name in _ours([cfg.get('model')], models.__all__)]
    all_hooks = [*(cfg.get('default_hooks') or {}).values(), *(cfg.get('custom_hooks') or [])]
    used += [f'the hook {name}' for name in _ours(all_hooks, hooks.__all__)]
    imports = (cfg.get('custom_imports') or {}).get('imports') or []
    imports = [imports] if isinstance(imports, str) else list(imports)
    if used and not any(name.partition('.')[0] == PACKAGE for name in imports):
        raise ConfigError(
            f'custom_imports.imports is {imports!r}, without {PACKAGE!r}, which {used[0]} needs '
            '(a config that sets custom_imports replaces the list it inherits); write '
            f'custom_imports = dict(imports={[*imports, PACKAGE]!r}, allow_failed_imports=False)'
        )


def _ours(configs: list, names: list[str]) -> list[str]:
    """Pick the types that are modules of this package, named as a config of text names them."""
    types = [x.get('type') for x in configs if isinstance(x, dict)]
    return [x for x in types if isinstance(x, str) and x.rpartition('.')[2] in names]
