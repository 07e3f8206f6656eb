"""AP reported by others for a detector on COCO: mmdet's model zoo, and the papers."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mmdet
import yaml
from mmengine.config import Config

from ...errors import ConfigError
from .report import Section, Table

ZOO = Path(mmdet.__file__).parent / '.mim/configs'
OURS = Path(__file__).parents[2] / '.mim/configs'
PREFIXES = ('sssd_', 'lgd_')


@dataclass(frozen=True)
class Reported:
    """A result of a metafile.

    Attributes:
        name: Name of the model.
        metric: Name of the metric, such as ``'box AP'``.
        value: In percent.
    """

    name: str
    metric: str
    value: float


def model_zoo_section(config: str) -> Section:
    """List what model zoo and papers report for a config's detector.

    From the model zoo, the stock config that the config inherits; without one, all configs with its
    detector and backbone. From the papers, those with its detector and backbone.

    Args:
        config: A config file or a name like ``'mmdet::fcos/….py'``.
    """
    stock = stock_names(config)
    alike = [x for x in _reported(ZOO) if _is_alike(x.name, stock)]
    rows = [
        *((x, "mmdet's model zoo") for x in [x for x in alike if x.name in stock] or alike),
        *((x, "the paper's authors") for x in _reported(OURS) if _is_alike(x.name, stock)),
    ]
    title = 'What others report for this detector on COCO'
    if not rows:
        text = f"Neither mmdet's model zoo nor the papers list a {Path(config).stem}."
        return Section(title, text=text)
    text = (
        'Trained and evaluated on COCO, by others: not comparable with the tables above unless these '
        'are COCO too, with the same schedule. None of it was reproduced here.'
    )
    lines = [[x.name, x.metric.partition(' (')[0], f'{x.value:.1f}', who] for x, who in rows]
    return Section(title, [Table(['config', 'metric', 'reported', 'by'], lines)], text)


def stock_names(config: str) -> list[str]:
    """List the configs that a config inherits, itself first, without this package's prefixes.

    Files in ``_base_`` folders are left out: they are mere parts.

    Raises:
        ConfigError: if a config cannot be read.
    """
    paths = [path for path in _with_bases(config, '') if '_base_' not in path.parts]
    return [_without_prefix(path.stem) for path in paths]


def _with_bases(config: str, heir: str) -> Iterator[Path]:
    try:
        path = Path(Config._get_cfg_path(config, heir)[0])
        bases = Config._get_base_files(str(path))
    except (OSError, ImportError, SyntaxError) as error:
        raise ConfigError(f'{config} cannot be read as a config ({error})') from error
    yield path
    for base in bases:
        yield from _with_bases(base, str(path))


def _without_prefix(name: str) -> str:
    return next((name[len(x) :] for x in PREFIXES if name.startswith(x)), name)


def _is_alike(name: str, stock: list[str]) -> bool:
    """Tell whether a model has the detector and backbone of one of the stock configs."""
    kind = _without_prefix(name).split('_')[:2]
    return any(x.split('_')[:2] == kind for x in stock)


def _reported(folder: Path) -> Iterator[Reported]:
    """Read the results in the metafiles of a folder's subfolders."""
    for path in sorted(folder.glob('*/metafile.yml')):
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
        models = content.get('Models', []) if isinstance(content, dict) else content
        for model in models or []:
            for result in model.get('Results') or []:
                for metric, value in (result.get('Metrics') or {}).items():
                    if 'AP' in metric and isinstance(value, (int, float)):
                        yield Reported(model['Name'], metric, value)
