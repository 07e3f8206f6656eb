from collections.abc import Iterator
from pathlib import Path

from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.dataset import BaseDataset

from ...datasets.leaf_datasets import leaf_datasets
from ...errors import ConfigError

STAGES = ('val', 'test', 'train')  # the largest last, to be read only if needed


def find_labelled_images(cfg: Config, images: list[str]) -> list[dict]:
    """Look images up in a config's data sets.

    Args:
        cfg: The whole config.
        images: Paths of images, or the last parts of their paths.

    Returns:
        The data sets' information on each image, labels included, before any pipeline.

    Raises:
        ConfigError: if no data set lists an image.
    """
    found: dict[str, dict] = {}
    searched = []
    for dataset in _datasets(cfg):
        found.update(_look_up(dataset, [image for image in images if image not in found]))
        searched.append(f'{dataset.ann_file or type(dataset).__name__} ({len(dataset)} images)')
        if len(found) == len(set(images)):
            break
    for image in images:
        if image not in found:
            raise ConfigError(
                f'{image} is not in the data sets of {cfg.filename}, where the teacher finds labels '
                f'(searched: {", ".join(searched) or "none"}); accepted: path or file name of an '
                'image that one of them lists'
            )
    return [found[image] for image in images]


def _datasets(cfg: Config) -> Iterator[BaseDataset]:
    """Build a config's data sets one by one, each once."""
    seen: list[dict] = []
    for stage in STAGES:
        dataset = (cfg.get(f'{stage}_dataloader') or {}).get('dataset')
        if dataset and dataset not in seen:
            seen.append(dataset)
            yield from leaf_datasets(DATASETS.build(dataset))


def _look_up(dataset: BaseDataset, images: list[str]) -> dict[str, dict]:
    paths = {image: Path(image) for image in images}
    absolute = {image: path.resolve() for image, path in paths.items()}
    found = {}
    for info in (dataset.get_data_info(index) for index in range(len(dataset))):
        listed = Path(info['img_path'])
        for image, path in paths.items():
            is_end = listed.parts[-len(path.parts) :] == path.parts
            if is_end or listed.resolve() == absolute[image]:
                found.setdefault(image, info)
    return found
