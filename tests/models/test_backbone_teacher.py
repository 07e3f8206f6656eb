"""The fixed backbone as a teacher: its images, its levels, and what checkpoints hold."""

import copy

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.model import BaseModule

from mmdet_sssd import ConfigError, recipes
from mmdet_sssd.models import BackboneTeacher, CosineLoss

from ..distillers import build as build_distiller
from ..distillers import losses_of
from ..stock_detectors import demo_batch, stock_config


@MODELS.register_module()
class PatchEmbedding(BaseModule):
    """One map of 14 × 14 patches, as a small transformer has."""

    def __init__(self):
        super().__init__()
        self.project = nn.Conv2d(3, 8, 14, 14)
        self.seen = []

    def forward(self, images):
        self.seen.append(images)
        return (self.project(images),)

    def init_weights(self):
        nn.init.constant_(self.project.weight, 0.01)


@MODELS.register_module()
class Tokens(PatchEmbedding):
    def forward(self, images):
        return (self.project(images[..., :196, :196]).flatten(2).mT,)


class Embedding(nn.Conv2d):
    """Loaded with 0.01 by who builds it; like timm's models, it starts anew when asked to."""

    def __init__(self):
        super().__init__(3, 8, 14, 14)
        nn.init.constant_(self.weight, 0.01)

    def init_weights(self):
        nn.init.normal_(self.weight)


@MODELS.register_module()
class LoadedModule(nn.Module):
    def __init__(self):
        super().__init__()
        self.project = Embedding()

    def forward(self, images):
        return (self.project(images),)


@MODELS.register_module()
class LoadedBaseModule(BaseModule, LoadedModule):
    pass


OWN = dict(type='PatchEmbedding')


def build(backbone=OWN, term=None, **settings):
    recipe = copy.deepcopy(recipes.backbone.model)
    recipe['terms']['cosine'].update(term or {})
    recipe['teachers'] = dict(backbone=dict(type='BackboneTeacher', backbone=backbone, **settings))
    return build_distiller(**{**recipe, 'student': 'retinanet'})


def test_it_sees_the_images_in_its_own_normalisation_and_whole_patches():
    model = build(multiple_of=14, mean=(10, 20, 30), std=(2, 4, 8))
    teacher, student = model.teachers['backbone'], model.student.data_preprocessor
    pixels = torch.randint(0, 255, (2, 3, 64, 96)).float()  # R, G, B, as the student's
    samples = demo_batch(model)['data_samples'][:2]
    for sample in samples:
        sample.set_metainfo(dict(img_shape=(64, 96)))
    teacher(model.student, None, (pixels - student.mean) / student.std, samples)
    rgb = torch.tensor([10.0, 20, 30]).view(3, 1, 1), torch.tensor([2.0, 4, 8]).view(3, 1, 1)
    expected = F.interpolate((pixels - rgb[0]) / rgb[1], (70, 98), mode='bilinear')
    torch.testing.assert_close(teacher.backbone.seen[-1], expected, rtol=1e-4, atol=1e-4)


def test_the_term_is_the_angle_between_adapted_levels_and_the_resized_map():
    model = build(multiple_of=14, term=dict(distill_coef=3.0))
    data = demo_batch(model)
    losses = losses_of(model, data)
    term, teacher = model.terms['cosine'], model.teachers['backbone']
    assert term.pairs == [(0, 0), (1, 0), (2, 0)]  # strides 8 to 32 beside 14
    target = teacher.backbone.project(teacher.backbone.seen[-1])
    feats = model.student.extract_feat(data['inputs'])
    distances = []
    for (p, _), layer in zip(term.pairs, term.adapter.levels, strict=True):
        adapted = torch.einsum('bchw,dc->bdhw', feats[p], layer.weight[..., 0, 0])
        x = (adapted + layer.bias[:, None, None]).permute(0, 2, 3, 1).flatten(0, 2)
        size = feats[p].shape[2:]
        t = F.interpolate(target, size, mode='bilinear').permute(0, 2, 3, 1).flatten(0, 2)
        distances.append(1 - ((x * t).sum(1) / x.norm(dim=1) / t.norm(dim=1)).mean())
        torch.testing.assert_close(losses[f'cosine_distance.{p}'], distances[-1].detach())
    torch.testing.assert_close(losses['loss_cosine'], 3 * torch.stack(distances).mean())
    losses['loss_cosine'].backward()
    assert all(x.grad is None for x in teacher.parameters())
    assert all(x.grad.any() for x in term.parameters())


def test_checkpoints_leave_it_out_and_a_resumed_run_has_its_weights(tmp_path):
    model = build(multiple_of=14)
    weights = model.state_dict()
    assert not [key for key in weights if key.startswith('teachers')]
    resumed = build(multiple_of=14)
    resumed.load_state_dict(weights, strict=True)
    ours, theirs = (x.teachers['backbone'].backbone.project.weight for x in (resumed, model))
    assert torch.equal(ours, theirs)
    assert (ours == 0.01).all()


@pytest.mark.parametrize(
    ('backbone', 'is_kept'),
    [
        (dict(type='LoadedModule'), True),
        (dict(type='LoadedBaseModule'), True),
        (dict(type='LoadedBaseModule', init_cfg=dict(type='Normal', layer='Embedding')), False),
    ],
)
def test_a_backbone_of_one_s_own_keeps_the_weights_that_it_has_loaded(backbone, is_kept):
    weight = build(backbone, multiple_of=14).teachers['backbone'].backbone.project.weight
    assert (weight == 0.01).all() == is_kept


def test_a_backbone_of_mmdet_s_without_weights_is_refused(tmp_path):
    backbone = dict(stock_config('retinanet').backbone)
    with pytest.raises(
        ConfigError, match=r'backbone\.backbone is a ResNet without trained weights'
    ):
        build(backbone)
    weights = {x: y + 1 for x, y in MODELS.build(backbone).state_dict().items()}
    torch.save(weights, tmp_path / 'resnet.pth')
    backbone['init_cfg'] = dict(type='Pretrained', checkpoint=str(tmp_path / 'resnet.pth'))
    teacher = build(backbone).teachers['backbone']
    assert torch.equal(teacher.backbone.conv1.weight, weights['conv1.weight'])


def test_several_maps_of_a_detector_s_backbone():
    backbone = dict(stock_config('retinanet').backbone)
    model = build(backbone, checkpoint=None, precision='bfloat16')
    assert model.terms['cosine'].pairs == [(0, 1), (1, 2), (2, 3), (3, 3)]
    losses = losses_of(model)
    assert 0 < losses['loss_cosine'] < 2
    chosen = build(backbone, checkpoint=None, term=dict(levels=[None, 2, 3, None, None]))
    assert chosen.terms['cosine'].pairs == [(1, 2), (2, 3)]


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(precision='half'), r"backbone\.precision is 'half'; accepted: float16"),
        (dict(checkpoint='file.pth'), r"backbone\.checkpoint is 'file\.pth'; .*init_cfg"),
        (dict(backbone=dict(type='Tokens')), r'backbone\.backbone is .* fails on .*\(1, 196, 8\)'),
    ],
)
def test_what_cannot_work_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        build(**settings)


def test_a_missing_timm_is_named(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'timm', None)
    with pytest.raises(ConfigError, match=r'backbone\.backbone is .*pip install timm'):
        build('vit_tiny_patch16_224')


def test_the_cosine_is_finite_on_anything():
    for value in (0.0, 1e30, -1e-30):
        x = torch.full((1, 4, 2, 2), value, requires_grad=True)
        loss = CosineLoss()([x], [torch.randn(1, 4, 2, 2)])
        loss.backward()
        assert loss.isfinite()
        assert x.grad.isfinite().all()
    assert CosineLoss()([x[:, :, :0]], [x[:, :, :0]]) == 0
    assert CosineLoss()([x + 1], [3 * x + 3]).abs() < 1e-6


def test_a_pixel_without_direction_gets_no_gradient_of_the_cosine():
    x, target = torch.randn(2, 1, 4, 2, 2).abs()
    x[..., 0, 1] = 0
    x.requires_grad_()
    CosineLoss()([x], [target]).backward()
    sizes = x.grad.norm(dim=1).flatten()
    assert sizes[1] == 0
    assert 0.01 < sizes[[0, 2, 3]].min() < sizes.max() < 1


@pytest.fixture
def timm():
    """Skips where timm, or a torchvision that fits torch, is missing."""
    try:
        import timm
    except Exception as error:
        pytest.skip(f'timm: {error}')
    return timm


def test_a_transformer_of_timm_s_takes_any_size_by_its_own_rules(timm, tmp_path):
    name = 'vit_tiny_patch16_224'
    torch.manual_seed(5)
    whole = timm.create_model(name, pretrained=False)
    torch.save(whole.state_dict(), tmp_path / 'vit.pth')
    model = build(name, checkpoint=str(tmp_path / 'vit.pth'))
    teacher = model.teachers['backbone']
    assert isinstance(teacher, BackboneTeacher)
    assert teacher.multiple_of == 16
    student = model.student.data_preprocessor
    pixels = torch.randint(0, 255, (1, 3, 224, 224)).float()
    samples = demo_batch(model)['data_samples'][:1]
    samples[0].set_metainfo(dict(img_shape=(224, 224)))
    feats = teacher(model.student, None, (pixels - student.mean) / student.std, samples).feats
    expected = whole.eval().forward_intermediates(
        (pixels / 255 - 0.5) / 0.5, indices=[11], norm=False, intermediates_only=True
    )
    torch.testing.assert_close(feats[-1], expected[0], rtol=1e-3, atol=1e-3)
    assert model.terms['cosine'].pairs == [(p, len(feats) - 1) for p in range(3)]
    losses = losses_of(model)
    assert 0 < losses['loss_cosine'] < 2

    torch.save({'other': torch.zeros(1)}, tmp_path / 'other.pth')
    with pytest.raises(ConfigError, match=r'other\.pth.*none of whose weights'):
        build(name, checkpoint=str(tmp_path / 'other.pth'))
    with pytest.raises(ConfigError, match=r'vit_tinny_patch16_224.*did you mean vit_tiny'):
        build('vit_tinny_patch16_224')


@pytest.mark.parametrize('name', ['vit_small_patch14_dinov2', 'efficientnet_lite0'])
def test_patches_of_14_and_pyramids_of_timm(timm, name):
    model = build(name, checkpoint=None)
    losses = losses_of(model)
    assert 0 < losses['loss_cosine'] < 2
    nearest = [(0, 2), (1, 3), (2, 4), (3, 4)] if 'lite' in name else [(0, 2), (1, 2), (2, 2)]
    assert model.terms['cosine'].pairs == nearest
