"""Reads, extends and checks the ``custom_imports`` of a config."""

from typing import Any

from mmengine.config import Config, ConfigDict

from .. import hooks, models
from ..errors import ConfigError

PACKAGE = __name__.partition('.')[0]


def imported_modules(cfg: Config | ConfigDict) -> list[str]:
    """List the modules that a config imports."""
    imports = (cfg.get('custom_imports') or {}).get('imports') or []
    return [imports] if isinstance(imports, str) else list(imports)


def with_imports(cfg: Config | ConfigDict, *modules: str) -> dict[str, Any]:
    """Return a config's ``custom_imports`` with more modules."""
    return {
        'imports': list(dict.fromkeys([*imported_modules(cfg), *modules])),
        'allow_failed_imports': (cfg.get('custom_imports') or {}).get(
            'allow_failed_imports', False
        ),
    }


def check_custom_imports(cfg: Config) -> None:
    """Check that a config which uses modules of this package imports it.

    This package's commands import it anyway, but other tools could not read the config that a run
    writes to its work directory.

    Args:
        cfg: The whole config.

    Raises:
        ConfigError: if the model or a hook is from this package and ``custom_imports`` lacks it.
    """
    used = [f'model.type={name}' for name in _ours([cfg.get('model')], models.__all__)]
    all_hooks = [*(cfg.get('default_hooks') or {}).values(), *(cfg.get('custom_hooks') or [])]
    used += [f'the hook {name}' for name in _ours(all_hooks, hooks.__all__)]
    imports = imported_modules(cfg)
    if used and not any(name.partition('.')[0] == PACKAGE for name in imports):
        raise ConfigError(
            f'custom_imports.imports is {imports!r}, without {PACKAGE!r}, which {used[0]} needs '
            '(a config that sets custom_imports replaces the list it inherits); write '
            f'custom_imports = dict(imports={[*imports, PACKAGE]!r}, allow_failed_imports=False)'
        )


def _ours(configs: list, names: list[str]) -> list[str]:
    """Pick the types, given by name, that are modules of this package."""
    types = [x.get('type') for x in configs if isinstance(x, dict)]
    return [x for x in types if isinstance(x, str) and x.rpartition('.')[2] in names]
