import json
import os.path as osp

from ..errors import ConfigError


def read_coco_summary(data_root: str, ann_file: str, set_by: str) -> tuple[tuple[str, ...], int]:
    """Read from a COCO annotation file what a config depends on.

    Args:
        data_root: Folder of the data set.
        ann_file: Annotation file, relative to it.
        set_by: What the user sets these two by, for the error.

    Returns:
        The names of the categories, in the file's order, and the number of images.

    Raises:
        ConfigError: if there is no such file or it is no COCO annotation file.
    """
    path = osp.join(data_root, ann_file)
    try:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
        return tuple(x['name'] for x in content['categories']), len(content['images'])
    except FileNotFoundError as error:
        raise ConfigError(
            f'there is no annotation file {path} (looked for from {osp.abspath(osp.curdir)}); it is '
            f'set by {set_by} in the environment'
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f'{path} is no COCO annotation file ({type(error).__name__}: {error}); accepted: JSON '
            f'with images, annotations and categories. It is set by {set_by} in the environment'
        ) from error
