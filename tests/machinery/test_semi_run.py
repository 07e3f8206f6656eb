"""Real runs of the semi-supervised demo config, and its detections as labels, on drawn shapes."""

import json
import math
import os
from pathlib import Path

import pytest
import torch
from mmdet.apis import DetInferencer
from mmdet.registry import DATASETS, MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.runner import Runner

from mmdet_sssd import ConfigError
from mmdet_sssd.commands.pseudo_labels import make_pseudo_labels
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


@pytest.fixture
def teacher_config(data):
    path = data / 'teacher.py'
    small(Config.fromfile(TEACHER)).dump(path)
    return path


def pseudo_labels(data, config, out, **kwargs):
    return make_pseudo_labels(
        config,
        data / 'teacher.pth',
        data / 'annotations/unlabelled.json',
        data / 'val',
        out,
        device='cpu',
        **kwargs,
    )


def test_detections_come_back_as_labels(data, teacher_config, tmp_path):
    out = tmp_path / 'new/pseudo.json'
    inferencer = DetInferencer(
        str(teacher_config), str(data / 'teacher.pth'), device='cpu', show_progress=False
    )
    images = sorted(str(x) for x in (data / 'val').iterdir())
    predictions = inferencer(images, return_datasamples=True)['predictions']
    expected = {x.metainfo['img_path']: x.pred_instances for x in predictions}
    threshold = sorted(x.scores.max().item() for x in expected.values())[1] - 1e-6  # one has none
    counts = pseudo_labels(data, teacher_config, out, score_thr=threshold)
    dataset = DATASETS.build(
        dict(
            type='CocoDataset',
            ann_file=str(out),
            data_prefix=dict(img=str(data / 'val')),
            metainfo=dict(classes=inferencer.model.dataset_meta['classes']),
            filter_cfg=dict(filter_empty_gt=False),
            pipeline=[],
        )
    )
    assert len(dataset) == 4
    numbers = []
    for info in (dataset.get_data_info(i) for i in range(4)):
        found = expected[info['img_path']]
        found = found[found.scores >= threshold]
        sizes = found.bboxes[:, 2:] - found.bboxes[:, :2]
        found = found[(sizes >= 1).all(1)]
        boxes = torch.tensor([x['bbox'] for x in info['instances']]).reshape(-1, 4)
        torch.testing.assert_close(boxes, found.bboxes)
        assert [x['bbox_label'] for x in info['instances']] == found.labels.tolist()
        numbers.append(len(found))
    assert (min(numbers), *counts) == (0, 4, sum(numbers))
    assert sum(numbers) > 0


def test_a_run_that_is_stopped_as_it_writes_leaves_the_old_labels(
    data, teacher_config, tmp_path, monkeypatch
):
    out = tmp_path / 'pseudo.json'
    out.write_text('old')

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, 'replace', stop)
    with pytest.raises(KeyboardInterrupt):
        pseudo_labels(data, teacher_config, out)
    assert out.read_text() == 'old'


def test_what_cannot_be_labelled_is_named(data, teacher_config, tmp_path):
    out = tmp_path / 'pseudo.json'
    with pytest.raises(ConfigError, match=r'--score-thr is 40; accepted: 0 to 1'):
        pseudo_labels(data, teacher_config, out, score_thr=40)
    with pytest.raises(ConfigError, match='write to another file'):
        pseudo_labels(data, teacher_config, data / 'annotations/unlabelled.json')
    with pytest.raises(ConfigError, match=r'4 of the 4 images of .* are missing, first'):
        make_pseudo_labels(
            teacher_config, 'x.pth', data / 'annotations/unlabelled.json', tmp_path, out
        )
    for text, message in (('[1', 'is not a COCO annotation file'), ('{}', "KeyError: 'images'")):
        (tmp_path / 'ann.json').write_text(text)
        with pytest.raises(ConfigError, match=message):
            make_pseudo_labels(teacher_config, 'x.pth', tmp_path / 'ann.json', tmp_path, out)
    with pytest.raises(ConfigError, match='--ann: there is no'):
        make_pseudo_labels(teacher_config, 'x.pth', tmp_path / 'none.json', tmp_path, out)
    assert not out.exists()
