from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
from mmcv.transforms import LoadImageFromFile

from ..errors import ConfigError


@contextmanager
def unreadable_images_named() -> Iterator[None]:
    """Have mmcv name the file when it cannot read an image, in this process and loader workers.

    Its own errors depend on what is wrong with the file, and that of an empty one names nothing.
    """
    load = LoadImageFromFile.transform

    def load_or_name(self: LoadImageFromFile, results: dict[str, Any]) -> dict[str, Any] | None:
        try:
            return load(self, results)
        except (AssertionError, OSError, cv2.error) as error:
            reason = getattr(error, 'strerror', None) or 'not a whole image'
            raise ConfigError(
                f'{results["img_path"]} cannot be read ({reason}); replace the file, or take it out '
                'of the annotations'
            ) from error

    LoadImageFromFile.transform = load_or_name
    try:
        yield
    finally:
        LoadImageFromFile.transform = load
