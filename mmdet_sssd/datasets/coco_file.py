"""Reads COCO annotation files."""

import json
import os.path as osp

from ..errors import ConfigError

NEEDED = {'images': {'id'}, 'categories': {'id', 'name'}}  # LVIS has no file_name


def read_coco(path: str, named_by: str) -> dict[str, list[dict]]:
    """Read a COCO annotation file.

    Args:
        path: Path of the file.
        named_by: Config key or setting that names the file, for the error.

    Returns:
        The lists ``images``, ``annotations`` and ``categories``; empty if missing.

    Raises:
        ConfigError: if the file is missing or not in COCO format.
    """
    try:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
        if not isinstance(content, dict):
            raise ValueError(f'it holds a {type(content).__name__}')
        for part, keys in NEEDED.items():
            for entry in content[part]:
                if missing := keys - entry.keys():
                    raise KeyError(f'{min(missing)} in {part}')
        return {part: content.get(part, []) for part in ('images', 'annotations', 'categories')}
    except FileNotFoundError as error:
        raise ConfigError(
            f'{named_by}: there is no {path} (looked for from {osp.abspath(osp.curdir)})'
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f'{named_by}: {path} (looked for from {osp.abspath(osp.curdir)}) is not a COCO '
            f'annotation file ({type(error).__name__}: {error}); accepted: JSON with '
            f'{" and ".join(NEEDED)}'
        ) from error


def read_coco_summary(data_root: str, ann_file: str, set_by: str) -> tuple[tuple[str, ...], int]:
    """Read a COCO file's category names, in file order, and its number of images.

    Raises:
        ConfigError: if the file is missing, not in COCO format, or has no categories.
    """
    path = osp.join(data_root, ann_file)
    content = read_coco(path, set_by)
    if not content['categories']:
        raise ConfigError(
            f'{set_by}: {path} has no categories; accepted: a COCO file that names the classes'
        )
    return tuple(x['name'] for x in content['categories']), len(content['images'])
