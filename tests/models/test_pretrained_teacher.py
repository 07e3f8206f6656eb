"""The pretrained teacher: its weights, its images, and what checkpoints hold."""

import copy

import pytest
import torch
from mmdet.models.dense_heads import FCOSHead
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from torch import nn

from mmdet_sssd import ConfigError

from ..distillers import SSIM, assert_equal, build, losses_of, pretrained
from ..stock_detectors import demo_batch, stock_config

PLAIN = dict(type='DetDataPreprocessor')  # pixels as they are
GREY = dict(type='DetDataPreprocessor', mean=[0.0], std=[255.0])
BGR = dict(
    type='DetDataPreprocessor', mean=[103.5, 116.3, 123.7], std=[1.0, 2.0, 3.0], pad_size_divisor=32
)


@MODELS.register_module()
class OwnHead(FCOSHead):
    """It has a layer that mmdet takes for an old name of ``conv_cls`` in weights without versions."""

    def _init_layers(self):
        super()._init_layers()
        self.aux_cls = nn.Conv2d(self.feat_channels, self.cls_out_channels, 3)


def distiller(teacher=None, checkpoint=None, student=None, is_initialised=True):
    large = pretrained(teacher or stock_config('retinanet'))
    config = dict(
        type='Distiller',
        student=student or stock_config('retinanet'),
        teachers=dict(large=large | dict(checkpoint=checkpoint)),
        terms=dict(ssim=SSIM),
    )
    return build(**config) if is_initialised else MODELS.build(config)


def test_nothing_done_to_the_model_reaches_the_teacher():
    model = distiller()
    teacher = model.teachers['large'].detector
    before = copy.deepcopy(teacher.state_dict())
    model.init_weights()
    model.train()
    assert not any(module.training for module in teacher.modules())
    assert not any(key.startswith('teachers') for key in model.state_dict())

    optim = build_optim_wrapper(model, dict(optimizer=dict(type='SGD', lr=0.1, weight_decay=0.1)))
    given = {id(p) for group in optim.param_groups for p in group['params'] if p.requires_grad}
    assert given == {id(p) for part in (model.student, model.terms) for p in part.parameters()}
    optim.update_params(model.parse_losses(losses_of(model))[0])
    assert_equal(dict(teacher.state_dict()), dict(before))
    assert all(p.grad is None for p in teacher.parameters())


def test_weights_of_a_student_load_as_its_own_would(tmp_path):
    torch.manual_seed(5)
    config = stock_config('fcos')
    config.bbox_head.type = 'OwnHead'
    run = distiller(student=config)
    expected = run.student.state_dict()
    torch.save(dict(state_dict=run.state_dict()), tmp_path / 'weights.pth')
    model = distiller(config, str(tmp_path / 'weights.pth'))
    assert_equal(dict(model.teachers['large'].detector.state_dict()), dict(expected))


def test_weights_from_before_norms_counted_batches(tmp_path):
    config = stock_config('retinanet')
    weights = MODELS.build(config).state_dict()
    old = {key: x for key, x in weights.items() if not key.endswith('num_batches_tracked')}
    assert len(old) < len(weights)
    torch.save(old, tmp_path / 'weights.pth')
    distiller(config, str(tmp_path / 'weights.pth'))


def test_weights_of_before_a_layer_was_renamed(tmp_path):
    config = stock_config('fcos')
    expected = MODELS.build(config).state_dict()
    old = {key.replace('.conv_cls.', '.fcos_cls.'): x for key, x in expected.items()}
    assert old.keys() != expected.keys()
    torch.save(old, tmp_path / 'weights.pth')
    model = distiller(config, str(tmp_path / 'weights.pth'))
    assert_equal(dict(model.teachers['large'].detector.state_dict()), dict(expected))


def test_weights_of_a_deeper_network_are_refused(tmp_path):
    """All that a shallower one of the same blocks has are among them."""
    deeper = stock_config('retinanet')
    deeper.backbone.depth = 34
    torch.save(MODELS.build(deeper).state_dict(), tmp_path / 'weights.pth')
    with pytest.raises(
        ConfigError, match=r'does not fit.*: backbone\.layer1\.2\.conv1.*none of the'
    ):
        distiller(stock_config('retinanet'), str(tmp_path / 'weights.pth'))


@pytest.mark.parametrize(
    ('lacks', 'key'), [('student', 'model.student'), ('teacher', 'model.teachers.large.config')]
)
def test_a_detector_without_normalisation_is_refused(lacks, key):
    configs = dict(student=stock_config('retinanet'), teacher=stock_config('retinanet'))
    del configs[lacks]['data_preprocessor']
    with pytest.raises(ConfigError, match=rf'^{key}\.data_preprocessor is a BaseDataPreprocessor'):
        distiller(**configs)


@pytest.mark.parametrize('prefix', ['', 'student.'])
def test_weights_are_loaded_when_training_begins(tmp_path, prefix):
    """As stock runs and distillers' save them."""
    Config(dict(model=stock_config('retinanet'))).dump(tmp_path / 'config.py')
    torch.manual_seed(5)
    expected = MODELS.build(stock_config('retinanet')).state_dict()
    saved = {f'{prefix}{key}': x for key, x in expected.items()} | {'teacher.x': torch.ones(1)}
    torch.save(dict(state_dict=saved), tmp_path / 'weights.pth')
    model = distiller(str(tmp_path / 'config.py'), str(tmp_path / 'weights.pth'))
    assert_equal(dict(model.teachers['large'].detector.state_dict()), dict(expected))


def test_weights_of_another_shape_are_refused(tmp_path):
    Config(dict(model=stock_config('retinanet'))).dump(tmp_path / 'config.py')
    weights = MODELS.build(stock_config('retinanet')).state_dict()
    name = 'bbox_head.retina_cls.bias'
    torch.save({**weights, name: weights[name][1:]}, tmp_path / 'weights.pth')
    with pytest.raises(ConfigError, match=f'does not fit.*: {name}, of shape'):
        distiller(str(tmp_path / 'config.py'), str(tmp_path / 'weights.pth'))


def test_a_distiller_s_config_stands_for_its_student(tmp_path):
    """With the data preprocessor that it has from outside, without branches."""
    student = stock_config('retinanet')
    own = dict(student.pop('data_preprocessor'), mean=[1.0, 2.0, 3.0])
    outer = dict(type='MultiBranchDataPreprocessor', data_preprocessor=own)
    run = dict(model=dict(type='SemiDistiller', student=student), data_preprocessor=outer)
    Config(run).dump(tmp_path / 'run.py')
    teacher = distiller(str(tmp_path / 'run.py')).teachers['large'].detector
    assert teacher.data_preprocessor.mean.flatten().tolist() == [1, 2, 3]


def test_inference_does_without_the_checkpoint():
    model = distiller(checkpoint='gone.pth', is_initialised=False).eval()
    data = demo_batch(model)
    assert len(model.predict(**{f'batch_{k}': v for k, v in data.items()})) == 2
    message = r"model\.teachers\.large\.checkpoint is 'gone\.pth': .*gone\.pth can ?not be found"
    with pytest.raises(ConfigError, match=message):
        model.init_weights()
    with pytest.raises(ConfigError, match=message):
        model.train()(**data, mode='loss')


@pytest.mark.parametrize('student', [None, PLAIN, GREY, BGR])
@pytest.mark.parametrize('teacher', [None, PLAIN, GREY, BGR])
def test_the_teacher_sees_images_as_its_own_preprocessor_makes_them(student, teacher):
    """Also in the padding, with other channel order, and where one of them does not normalise."""
    configs = [stock_config('retinanet') for _ in range(2)]
    for config, preprocessor in zip(configs, (student, teacher), strict=True):
        config.data_preprocessor = preprocessor or config.data_preprocessor
        config.data_preprocessor['pad_size_divisor'] = 32
    configs[1].data_preprocessor['pad_value'] = 0 if teacher is None else 7
    model = distiller(configs[1], student=configs[0])
    raw = demo_mm_inputs(2, [[3, 96, 128], [3, 128, 90]], num_classes=3)
    mine = model.data_preprocessor(copy.deepcopy(raw), True)
    expected = model.teachers['large'].detector.data_preprocessor(raw, True)
    seen = model.teachers['large'].convert(mine['inputs'], mine['data_samples'])
    torch.testing.assert_close(seen, expected['inputs'], rtol=1e-5, atol=2e-4)


def test_images_of_a_size_that_the_teacher_cannot_take_are_named():
    """A top-down and bottom-up pyramid wants multiples of its coarsest stride; DETR does not pad."""
    model = distiller(teacher=stock_config('yolox'), student=stock_config('faster_rcnn'))
    images, samples = torch.rand(1, 3, 100, 100), [DetDataSample()]
    with pytest.raises(ConfigError, match=r'a YOLOX, fails on images of 100×100.*divisor=32'):
        model.teachers['large'](model.student, None, images, samples)


def test_predictions_are_not_turned_back(monkeypatch):
    """Cascaded mask heads take a flipped image for one of several that are averaged."""
    teacher = distiller().teachers['large']
    sample = DetDataSample(metainfo=dict(img_shape=(64, 64), flip=True, scale_factor=(1, 1)))
    seen, predict = [], teacher.detector.predict
    monkeypatch.setattr(
        teacher.detector,
        'predict',
        lambda *args, **kw: seen.extend(args[1]) or predict(*args, **kw),
    )
    teacher.predict(torch.rand(1, 3, 64, 64), [sample])
    assert ([x.flip for x in seen], sample.flip) == ([False], True)


def test_images_without_a_border_are_whole_to_centernet():
    config = Config.fromstring(
        '_base_ = "mmdet::centernet/centernet_r18_8xb16-crop512-140e_coco.py"', '.py'
    )
    config.model.backbone.init_cfg = None
    teacher = distiller(teacher=config.model).teachers['large']
    samples = [DetDataSample(metainfo=dict(img_shape=(64, 64), batch_input_shape=(64, 64)))]
    images = torch.rand(1, 3, 64, 64)
    _, (found,) = teacher.predict(images, samples)
    assert 'border' not in samples[0]
    samples[0].set_metainfo(dict(border=(0, 64, 0, 64)))
    _, (expected,) = teacher.predict(images, samples)
    assert torch.equal(found.bboxes, expected.bboxes)
