"""Real runs of the semi-supervised demo config on drawn shapes."""

import json
import math
from pathlib import Path

import pytest
import torch
from mmdet.apis import DetInferencer
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.runner import Runner

from mmdet_sssd.runs import load_from_local

from ..small_runner import draw_shapes
from ..tools.run_comparison import assert_equal_states, scalars

DEMO = Path(__file__).parents[2] / 'configs/demo'
CONFIG = DEMO / 'sad_retinanet_r18-small_semi-own-data.py'
TEACHER = DEMO / 'retinanet_r18-small_own-data.py'


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Eight labelled images and four without labels, a teacher that is half sure of everything."""
    root = draw_shapes(tmp_path_factory.mktemp('shapes'))
    content = json.loads((root / 'annotations/val.json').read_text())
    unlabelled = {key: content[key] for key in ('images', 'categories')}
    (root / 'annotations/unlabelled.json').write_text(json.dumps(unlabelled))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in dict(
            DATA_ROOT=root,
            TRAIN_IMG='train',
            VAL_IMG='val',
            UNLABELLED_IMG='val',
            IMAGE_SCALE='64x64',
            BATCH_SIZE='4',
            MAX_EPOCHS='2',
            TEACHER_CHECKPOINT=root / 'teacher.pth',
        ).items():
            patch.setenv(f'SSSD_{name}', str(value))
        register_all_modules()
        torch.manual_seed(0)
        teacher = MODELS.build(small(Config.fromfile(TEACHER)).model)
        teacher.bbox_head.retina_cls.bias.data.zero_()
        torch.save(dict(state_dict=teacher.state_dict(), meta={}), root / 'teacher.pth')
        yield root


def small(cfg):
    """Leave out what is random in workers, and narrow the detector."""
    student = cfg.model.get('student', cfg.model)
    student.backbone.base_channels = 16
    student.neck.in_channels = [16, 32, 64, 128]
    student.test_cfg.score_thr = 0.0  # a detector that has seen six batches is sure of nothing
    for stage in ('train', 'val'):
        cfg[f'{stage}_dataloader'].update(num_workers=0, persistent_workers=False)
    for dataset in cfg.train_dataloader.dataset.get('datasets', []):
        dataset.pipeline = [x for x in dataset.pipeline if x.type != 'RandomFlip']
    return cfg


def train(work_dir, **options):
    cfg = small(Config.fromfile(CONFIG))
    cfg.model.teachers.pretrained.config = small(Config.fromfile(TEACHER)).model.to_dict()
    cfg.default_hooks.checkpoint.max_keep_ckpts = -1
    cfg.default_hooks.logger.interval = 1
    cfg.visualizer.name = str(work_dir)  # else two runs of a process share one
    cfg.update(work_dir=str(work_dir), experiment_name=str(work_dir), **options)
    Runner.from_cfg(cfg).train()
    return work_dir


@pytest.fixture(scope='module')
def whole(data, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('mmengine.model.BaseModule._dump_init_info', lambda *_: None)
        return train(tmp_path_factory.mktemp('whole'))


def test_it_trains_on_both_kinds_of_images(whole):
    rows = scalars(whole)
    assert len(rows) == 2 * (8 + 4) / 4
    names = {'loss_cls', 'loss_bbox', 'loss_adl'}
    for row in rows.values():
        assert names | {f'unsup.{x}' for x in names} | {'unsup.pseudo_boxes'} < row.keys()
        losses = [row[f'{prefix}{x}'] for prefix in ('', 'unsup.') for x in names]
        assert all(0 < x < math.inf for x in losses)
        assert row['loss'] == pytest.approx(sum(losses), rel=1e-5)
        assert row['unsup.pseudo_boxes'] > 0
    assert [row['lr'] for row in rows.values()][-1] == pytest.approx(1e-5)


def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(whole, tmp_path):
    resumed = train(tmp_path / 'resumed', load_from=str(whole / 'iter_3.pth'), resume=True)
    ours, expected = (load_from_local(str(x / 'iter_6.pth')) for x in (resumed, whole))
    for key in ('state_dict', 'optimizer', 'param_schedulers'):
        assert_equal_states(ours[key], expected[key], key)
    rows = scalars(whole)
    assert scalars(resumed) == {step: rows[step] for step in (4, 5, 6)}


def test_the_exported_student_is_a_stock_detector(whole, data):
    config = whole / 'export/iter_6.py'
    (checkpoint,) = config.parent.glob('iter_6-*.pth')
    cfg = Config.fromfile(config)
    assert cfg.model.type == 'RetinaNet'
    assert cfg.model.data_preprocessor.type == 'DetDataPreprocessor'
    loader = Runner.build_dataloader(cfg.train_dataloader)
    assert len(loader.dataset) == 8
    model = MODELS.build(cfg.model)
    batch = model.data_preprocessor(next(iter(loader)), True)
    assert batch['inputs'].shape == (4, 3, 64, 64)
    assert sum(len(x.gt_instances) for x in batch['data_samples']) > 0

    image = str(next((data / 'val').iterdir()))
    stock = DetInferencer(str(config), str(checkpoint), device='cpu', show_progress=False)
    ours = DetInferencer(
        str(next(whole.glob('*.py'))), str(whole / 'iter_6.pth'), device='cpu', show_progress=False
    )
    found, expected = (
        x(image, return_datasamples=True)['predictions'][0].pred_instances for x in (stock, ours)
    )
    assert len(found) > 0
    for key, value in expected.items():
        assert torch.equal(found[key], value)
