import json
from pathlib import Path

import pytest
import torch
from mmdet.registry import METRICS, MODELS
from mmengine.evaluator import BaseMetric, DumpResults
from mmengine.fileio import load
from mmengine.hooks import CheckpointHook
from torch import nn

from mmdet_sssd import ConfigError

from ..distillers import SSIM, assert_equal, pretrained
from ..small_runner import (
    LABELS_FIRST,
    LABELS_LAST,
    LOAD_IMAGE,
    LOAD_LABELS,
    PACK,
    STRETCH,
    shapes_dataset,
    small_runner,
)
from ..stock_detectors import stock_config


def teacher_hook(name='teacher'):
    return {name: dict(type='EvalTeacherHook', teacher=name)}


EVAL_TEACHER = teacher_hook()
IDENTITY = dict(teacher=dict(type='IdentityTeacher'))
UNTRAINED = dict(
    teachers=dict(pretrained=pretrained(stock_config('retinanet'))),
    terms=dict(ssim={**SSIM, 'teacher': 'pretrained'}),
)


@MODELS.register_module()
class IdentityTeacher(nn.Module):
    """Gives the student's features back and notes the data samples that it was given."""

    def __init__(self, in_channels, num_classes):
        super().__init__()
        self.num_classes = num_classes
        self.seen = []

    def forward(self, student_feats, batch_inputs, batch_data_samples):
        if not self.training:  # the blank image, of which channels are read, has no id
            self.seen += [sample.clone() for sample in batch_data_samples if 'img_id' in sample]
        return student_feats


@METRICS.register_module()
class SumsMetric(BaseMetric):
    """Sums of all that is predicted and labelled: no two different predictions give the same."""

    default_prefix = 'sums'

    def process(self, data_batch, data_samples):
        for sample in data_samples:
            predicted, labelled = sample['pred_instances'], sample['gt_instances']
            self.results.append(
                dict(
                    bboxes=predicted['bboxes'].double().sum().item(),
                    scores=predicted['scores'].double().sum().item(),
                    labelled=labelled['bboxes'].double().sum().item(),
                )
            )

    def compute_metrics(self, results):
        return {key: sum(x[key] for x in results) for key in results[0]}


@pytest.fixture
def runner_of(shapes, tmp_path):
    """A function that makes runners, with the hook if not told otherwise, that compute sums too."""

    def make(name='run', hooks=EVAL_TEACHER, **kwargs):
        checkpoint = dict(type='CheckpointHook', save_best='sums/scores', rule='greater')
        return small_runner(
            tmp_path / name,
            shapes,
            metrics=[dict(type='SumsMetric')],
            default_hooks=dict(checkpoint=checkpoint, **hooks),
            **kwargs,
        )

    return make


def logged(work_dir, key):
    """The rows of a run's scalars that have a key, without times."""
    (path,) = Path(work_dir).glob('*/vis_data/scalars.json')
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if 'time' not in k} for row in rows if key in row]


def test_a_teacher_that_gives_the_student_s_features_has_the_student_s_metrics(runner_of):
    ema = dict(type='EMAHook', momentum=0.5)  # whose weights are the student's in validation
    hooks = [ema, *EVAL_TEACHER.values()]  # in whatever order they are given
    runner = runner_of(model=IDENTITY, hooks={}, custom_hooks=hooks)
    runner.train()
    rows = logged(runner.work_dir, 'teacher/coco/bbox_mAP')
    assert len(rows) == 2
    for row in rows:
        student = {k: v for k, v in row.items() if k.startswith(('coco/', 'sums/'))}
        assert {k: row[f'teacher/{k}'] for k in student} == student
        assert len(student) == 9
        assert row['sums/scores'] > 0
    assert rows[0]['sums/scores'] != rows[1]['sums/scores']
    hub = runner.message_hub
    assert hub.get_scalar('val/teacher/sums/scores').current() == rows[1]['sums/scores']
    (log,) = Path(runner.work_dir).glob('*/*.log')
    assert f'teacher/sums/scores: {rows[1]["sums/scores"]:.4f}' in log.read_text()


def test_the_hook_changes_nothing_but_the_log(runner_of):
    """Without RandomStateHook too, which would hide random numbers that the hook draws."""
    plain, evaluated = (run(runner_of, 'plain', {}), run(runner_of, 'evaluated', EVAL_TEACHER))
    assert all(row['teacher/sums/scores'] != row['sums/scores'] for row in evaluated['metrics'])
    for row in evaluated['metrics']:
        for key in [key for key in row if key.startswith('teacher/')]:
            del row[key]
    weights = [x.pop('weights') for x in (plain, evaluated)]
    assert evaluated == plain
    assert len(plain['best']) == 1
    assert_equal(*weights)


def run(runner_of, name, hooks):
    """Train and give what came of it."""
    runner = runner_of(name, hooks=hooks)
    runner.train()
    return dict(
        losses=logged(runner.work_dir, 'loss'),
        metrics=logged(runner.work_dir, 'coco/bbox_mAP'),
        weights=dict(runner.model.state_dict()),
        best=[x.name for x in Path(runner.work_dir).glob('best_*')],
        random_state=torch.get_rng_state().tolist(),
    )


LOAD_MASKS = dict(**LOAD_LABELS, with_mask=True)
ORDERS = {
    'resized first': [LOAD_IMAGE, STRETCH, LOAD_MASKS, PACK],
    'resized last': [LOAD_IMAGE, LOAD_MASKS, STRETCH, PACK],
}


def test_the_teacher_gets_labels_in_input_pixels_and_metrics_as_they_were(runner_of, shapes):
    seen = {}
    for name, pipeline in ORDERS.items():
        runner, is_training = runner_of(name, model=IDENTITY, pipeline=pipeline), set()
        preprocessor, neck = runner.model.data_preprocessor, runner.model.teachers['teacher'].neck
        preprocessor.register_forward_pre_hook(
            lambda _, args, found=is_training: found.add(args[1])
        )
        neck.use_masks = True
        metrics, hub = runner.test(), runner.message_hub
        assert hub.get_scalar('test/teacher/sums/labelled').current() == metrics['sums/labelled']
        assert is_training == {False}  # training may change whole batches (batch_augments)
        seen[name] = neck.seen
    annotations = json.loads((shapes / 'annotations/val.json').read_text())['annotations']
    for first, last in zip(*seen.values(), strict=True):
        boxes = [x['bbox'] for x in annotations if x['image_id'] == first.img_id]
        x, y, w, h = torch.tensor(boxes, dtype=torch.float).unbind(1)
        expected = torch.stack([x * 1.5, y * 0.75, (x + w) * 1.5, (y + h) * 0.75], 1)
        masks = last.gt_instances.masks.to_ndarray()
        assert masks.shape[1:] == (48, 96)
        assert (first.gt_instances.masks.to_ndarray() == masks).all()
        for sample in (first, last):
            torch.testing.assert_close(sample.gt_instances.bboxes, expected)


def test_files_of_the_student_s_evaluation_stay(runner_of, tmp_path):
    runner = runner_of()
    metrics = runner.test_evaluator.metrics
    metrics[0].outfile_prefix = str(tmp_path / 'results')
    metrics.append(DumpResults(str(tmp_path / 'results.pkl')))
    runner.test()
    student = load(tmp_path / 'results.bbox.json')
    dumped = torch.cat([x['pred_instances']['scores'] for x in load(tmp_path / 'results.pkl')])
    assert sorted(x['score'] for x in student) == sorted(dumped.tolist())
    teacher = load(tmp_path / 'results.teacher.bbox.json')
    assert sorted(x['score'] for x in student) != sorted(x['score'] for x in teacher)


NO_VALIDATION = dict.fromkeys(('val_dataloader', 'val_cfg', 'val_evaluator'))


@pytest.mark.parametrize(
    ('message', 'settings'),
    [
        (r'val_dataloader\.dataset\.pipeline loads no gt_b', dict(pipeline=[LOAD_IMAGE, PACK])),
        (
            'val_dataloader.*no gt_bboxes and gt_masks',
            dict(model=dict(teacher=dict(use_masks=True))),
        ),
        ('EvalTeacherHook evaluates after validation, but', NO_VALIDATION),
        (r'EvalTeacherHook\.teacher ', dict(hooks=teacher_hook('pretrained'), model=UNTRAINED)),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_training(runner_of, message, settings):
    runner = runner_of(**settings)
    with pytest.raises(ConfigError, match=f'^{message}'):
        runner.train()
    assert runner.iter == 0


def test_data_sets_that_disagree_are_refused(runner_of, shapes):
    pipelines = (LABELS_LAST, LABELS_FIRST)
    runner = runner_of()
    runner._val_dataloader['dataset'] = dict(
        type='ConcatDataset', datasets=[shapes_dataset(shapes, 'val', x) for x in pipelines]
    )
    with pytest.raises(ConfigError, match='some data sets load annotations before resizing'):
        runner.val()


def test_each_teacher_is_evaluated_under_its_name(runner_of):
    """The preset's own and another, by a hook each."""
    hooks = teacher_hook() | teacher_hook('other')
    other = dict(type='ImplicitTeacher', loss_weight=1.0)
    runner = runner_of(hooks=hooks, model=dict(teachers=dict(other=other)))
    checkpoint = next(x for x in runner.hooks if isinstance(x, CheckpointHook))
    checkpoint.save_best = None  # it saves in training alone
    metrics = runner.val()
    hub = runner.message_hub
    sums = [hub.get_scalar(f'val/{name}/sums/scores').current() for name in hooks]
    assert len({*sums, metrics['sums/scores']}) == 3
