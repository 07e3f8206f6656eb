import json
import os.path as osp

from ..errors import ConfigError

NEEDED = {'images': {'id'}, 'categories': {'id', 'name'}}  # LVIS has no file_name


def read_coco(path: str, named_by: str, needed: dict = NEEDED) -> dict[str, list[dict]]:
    """Read a COCO annotation file.

    Args:
        path: The file.
        named_by: The config key, or what else names the file, for the error.
        needed: The lists that it must have, and the keys of their entries.

    Returns:
        Its ``images``, ``annotations`` and ``categories``; an empty list for those it lacks.

    Raises:
        ConfigError: if the file is missing or of another format than COCO.
    """
    try:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
        for part, keys in needed.items():
            for entry in content[part]:
                if missing := keys - entry.keys():
                    raise KeyError(f'{min(missing)} in {part}')
        return {part: content.get(part, []) for part in ('images', 'annotations', 'categories')}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f'{named_by}: {path} (looked for from {osp.abspath(osp.curdir)}) is no COCO annotation '
            f'file ({type(error).__name__}: {error}); accepted: JSON with {" and ".join(needed)}'
        ) from error
