"""Every block of Python on the documentation's pages is right: configs are read and built, and every
setting in them is one of its class's; programs run, with a stand-in for mmdet's inferencer."""

import inspect
import json
import re
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import mmdet.apis
import mmdet.registry
import mmengine.registry
import pytest
from mmdet.registry import DATASETS, HOOKS, MODELS
from mmengine.config import Config
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import Registry
from torch import nn
from torch.nn.modules.conv import _ConvNd

from mmdet_sssd import hooks, runs
from mmdet_sssd.checks.annotations import check_annotations
from mmdet_sssd.commands.comparison.arms import find_arm, read_definitions
from mmdet_sssd.config_tree import nested_configs

from ..stock_detectors import shallow_resnets
from .blocks import PAGES, ROOT, Block, blocks_of

LANGUAGES = {'bash', 'python', 'json', ''}  # '' are pictures and what a command prints
REGISTRIES = [
    x for y in (mmdet.registry, mmengine.registry) for x in vars(y).values() if type(x) is Registry
]
PARTS = ('teachers', 'terms')  # of a model, which some blocks show alone
BUILT = ('model', 'tta_model', *PARTS)
TEACHER = "_base_ = 'mmdet::retinanet/retinanet_r101_fpn_2x_coco.py'\n"
README = next(x for x in blocks_of('README.md') if x.language == 'python')


def kind_of(block: Block) -> str:
    """Tell what a block of Python is, by what it begins with."""
    if block.page.endswith('.ipynb'):
        return 'cell'  # see test_notebook.py
    first = next(line for line in block.text.splitlines() if line)
    if first.startswith('# ') and first.endswith('.py'):
        return 'extension'  # see test_extending.py
    starts = {'from ': 'program', 'import ': 'program', 'arms = ': 'arms'}
    return next((kind for start, kind in starts.items() if first.startswith(start)), 'config')


def blocks_of_kind(kind: str) -> list:
    blocks = [b for page in PAGES for b in blocks_of(page) if b.language == 'python']
    return [pytest.param(b, id=str(b)) for b in blocks if kind_of(b) == kind]


def whole_config(block: Block) -> str:
    """Put a config's fragment behind the whole config before it, on the page or in the README."""
    whole = README.text
    for other in blocks_of(block.page):
        if '_base_ = ' in other.text and other.line <= block.line:
            whole = other.text
    return whole if whole == block.text else f'{whole}\n{block.text}'


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder, with the files that configs name."""
    content = {'images': [], 'annotations': [], 'categories': [{'id': 1, 'name': 'cell'}]}
    (tmp_path / 'train.json').write_text(json.dumps(content))
    (tmp_path / 'large.py').write_text(TEACHER)
    (tmp_path / 'my_config.py').write_text(README.text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(folder: Path, text: str) -> Config:
    (folder / 'config.py').write_text(text)
    return Config.fromfile(folder / 'config.py', import_custom_modules=False)


@pytest.mark.parametrize('block', blocks_of_kind('config'))
def test_a_config_is_read_and_built(block, folder, extensions):
    cfg = read(folder, whole_config(block))
    check_settings(cfg)
    if parts := {name: cfg[name] for name in PARTS if name in cfg}:
        large = dict(type='PretrainedTeacher', config='large.py', checkpoint=None)
        parts = {'teachers': dict(large=large), **parts}
        cfg.model = dict(type='Distiller', student=cfg.model.student, **parts)
    if re.search(rf'^({"|".join(BUILT)}) = ', block.text, re.M):
        with shallow_resnets(), without_weights():
            MODELS.build(cfg.model)
    for hook in cfg.default_hooks.values():
        if hook.type in hooks.__all__ + runs.__all__:
            HOOKS.build(hook)


@contextmanager
def without_weights():
    """Leave weights as the memory is; to draw them takes most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        for layer in (_ConvNd, nn.Linear):
            patch.setattr(layer, 'reset_parameters', lambda _: None)
        yield


def check_settings(cfg: Config) -> None:
    """Make sure that the other parts are of a class that has the settings given."""
    parts = {key: part for key, part in cfg.to_dict().items() if key not in BUILT}
    for key, part in nested_configs(parts):
        if isinstance(name := part.get('type'), str):
            found = (x.module_dict.get(name.rpartition('.')[2]) for x in REGISTRIES)
            cls = next((x for x in found if x), None)
            assert cls, f'{key}.type is {name}'
            known = settings_of(cls)
            assert known is None or part.keys() <= known | {'type', '_scope_'}, key


def settings_of(cls: type) -> set[str] | None:
    """List the arguments of a class; None if it takes any."""
    known = set()
    for base in cls.__mro__:
        if '__init__' in vars(base):
            parameters = inspect.signature(base.__init__).parameters.values()
            known |= {x.name for x in parameters}
            if all(x.kind != x.VAR_KEYWORD for x in parameters):  # which go to the next class
                return known
    return None


@pytest.mark.parametrize('block', blocks_of_kind('arms'))
def test_arms_are_read(block, folder):
    (folder / 'arms.py').write_text(block.text)
    definitions = read_definitions('arms.py')
    for name in Config.fromfile('arms.py').arms:
        find_arm(name, definitions)


@pytest.mark.parametrize('block', blocks_of_kind('program'))
def test_a_program_runs(block):
    """The inferencer runs for real in tests/stock_process.py and tests/checkpoints/."""
    names = {'MyConstructor': DefaultOptimWrapperConstructor}
    with mock.patch('mmdet.apis.DetInferencer', autospec=True):
        exec(compile(block.text, str(block), 'exec'), names)


def test_an_annotation_file_is_one_that_mmdet_reads(folder):
    (block,) = (x for page in PAGES for x in blocks_of(page) if x.language == 'json')
    (folder / 'example.json').write_text(block.text)
    classes = [x['name'] for x in json.loads(block.text)['categories']]
    dataset = dict(type='CocoDataset', ann_file='example.json', metainfo=dict(classes=classes))
    dataset |= dict(data_prefix=dict(img=''))
    evaluator = dict(type='CocoMetric', ann_file='example.json')
    config = Config(dict(val_dataloader=dict(dataset=dataset), val_evaluator=evaluator))
    check_annotations(config, ('val',))
    (sample,) = DATASETS.build(dataset | dict(pipeline=[], lazy_init=True)).load_data_list()
    assert sample['instances'][0]['bbox'] == [48.5, 240.0, 48.5 + 195, 240 + 108.5]


def test_files_of_the_package_are_shown_as_they_are():
    blocks = [block for page in PAGES for block in blocks_of(page)]
    shown = [block for block in blocks if block.text.startswith('# mmdet_sssd/')]
    assert shown
    for block in shown:
        first, _, text = block.text.partition('\n')
        assert text.strip() in (ROOT / first.removeprefix('# ')).read_text(), block


def test_every_block_is_of_a_language_that_is_checked():
    blocks = [block for page in PAGES for block in blocks_of(page)]
    others = [str(x) for x in blocks if x.language not in LANGUAGES and x.language[0] != '{']
    assert not others
