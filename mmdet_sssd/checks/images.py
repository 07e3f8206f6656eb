"""Finds image files that are broken, before training and in its loaders."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import repeat
from os import SEEK_END
from typing import Any

import cv2
from mmcv.transforms import LoadImageFromFile
from mmengine.dataset import BaseDataset
from PIL import Image
from rich.console import Console
from rich.progress import track

from ..datasets.branches import hide_labels
from ..errors import ConfigError, warn

THREADS = 16  # that wait for the disk
CHUNK = 1000  # images
ENDS = {'JPEG': b'\xff\xd9', 'PNG': b'IEND\xaeB`\x82'}
"""What a whole file ends with, perhaps followed by a few bytes."""
TAIL = 64  # bytes at the end of a file that are searched for it
EXIF_TURN, TURNS = 0x0112, (5, 6, 7, 8)  # by a quarter
UNKNOWN = 'not a whole image'


def check_image_files(datasets: Iterable[BaseDataset]) -> None:
    """Read the headers and ends of all images of built data sets, and show the progress.

    An image that looks broken is loaded by its pipeline, whose word counts. Images on other storage,
    and those that a transform of the user's own loads, are not checked.

    Raises:
        ConfigError: if images cannot be loaded; the message has their number, and names the first.
    """
    for dataset in datasets:
        load = next((x for x in dataset.pipeline.transforms if x is not hide_labels), None)
        if not isinstance(load, LoadImageFromFile) or load.file_client_args or load.backend_args:
            continue
        broken, odd = [], []
        for info, doubt in _doubts(dataset, load.color_type == 'color'):
            found = f'{info["img_path"]} ({doubt})'
            if not _loads(load, info):
                broken.append(found)
            elif doubt != UNKNOWN:
                odd.append(found)
        if broken:
            raise ConfigError(
                f'{len(broken)} of {len(dataset)} images cannot be loaded, the first is {broken[0]}; '
                f'replace the files, or take them out of {dataset.ann_file or "the annotations"}'
            )
        if odd:
            warn(
                f'{len(odd)} of {len(dataset)} images lack their end, have 16 bits, or another size '
                f'than their labels say, the first is {odd[0]}.'
            )


def _doubts(dataset: BaseDataset, turns: bool) -> Iterator[tuple[dict, str]]:
    """Yield the images that look broken, and why."""
    starts = range(0, len(dataset), CHUNK)
    text = f'reading the headers of {len(dataset)} images'
    console = Console(stderr=True)
    hidden = not console.is_terminal
    with ThreadPoolExecutor(THREADS) as pool:
        for start in track(starts, text, console=console, transient=True, disable=hidden):
            indices = range(start, min(start + CHUNK, len(dataset)))
            infos = [dataset.get_data_info(index) for index in indices]
            infos = [x for x in infos if '://' not in x.get('img_path', '://')]
            found = zip(infos, pool.map(_doubt, infos, repeat(turns)), strict=True)
            yield from (x for x in found if x[1])


def _doubt(info: dict, turns: bool) -> str:
    """Say what is wrong with an image, as far as its first and last bytes tell."""
    try:
        with open(info['img_path'], 'rb') as file:
            image = Image.open(file)
            size = image.size
            if turns and image.format == 'JPEG' and image.getexif().get(EXIF_TURN) in TURNS:
                size = size[::-1]
            file.seek(-min(TAIL, file.seek(0, SEEK_END)), SEEK_END)
            if ENDS.get(image.format, b'') not in file.read():
                return 'its end is missing'
    except OSError as error:
        return error.strerror or UNKNOWN
    except Image.DecompressionBombError:
        return UNKNOWN
    if image.mode.startswith('I;16'):
        return '16 bits deep; only the upper 8 are read'
    labelled = info.get('width', size[0]), info.get('height', size[1])
    return '' if size == labelled else '{} x {}, labelled as {} x {}'.format(*size, *labelled)


def _loads(load: LoadImageFromFile, info: dict) -> bool:
    try:
        return load(dict(info)) is not None
    except Exception:
        return False


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
