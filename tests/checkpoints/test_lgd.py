import pytest
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.runner.checkpoint import load_checkpoint
from mmengine.structures import InstanceData
from torch import nn

from mmdet_sssd.checkpoints import convert_lgd
from mmdet_sssd.errors import ConfigError

from ..models.teacher_restated import box_region
from ..toy_detector import TOY_MODEL

CHANNELS, NUM_CLASSES, SIDE = 8, 2, 64


class Transform(nn.Module):
    """Matrix of (n, d, d) for vectors of (n, d, 1)."""

    def __init__(self, d):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(d, 64, 1), nn.Conv1d(64, 128, 1)
        self.conv3 = nn.Conv1d(128, 1024, 1)
        self.fc1, self.fc2 = nn.Linear(1024, 512), nn.Linear(512, 256)
        self.fc3 = nn.Linear(256, d * d)

    def forward(self, x):
        d = x.shape[1]
        for layer in (self.conv1, self.conv2, self.conv3):
            x = norm_relu(layer(x))
        x = x.squeeze(-1)
        for layer in (self.fc1, self.fc2):
            x = norm_relu(layer(x))
        return self.fc3(x).view(-1, d, d)


class Encoder(nn.Module):
    def __init__(self, k):
        super().__init__()
        self.stn_desc, self.stn_feat = Transform(k), Transform(64)
        self.conv1, self.conv2 = nn.Conv1d(k, 64, 1), nn.Conv1d(64, 128, 1)
        self.conv3, self.conv4 = nn.Conv1d(128, 1024, 1), nn.Conv1d(64 + 1024, 256, 1)

    def forward(self, x):
        x = x.unsqueeze(-1)
        x = norm_relu(self.conv1((x.mT @ self.stn_desc(x)).mT))
        local = (x.mT @ self.stn_feat(x)).mT
        highest = norm_relu(self.conv3(norm_relu(self.conv2(local)))).amax(0, keepdim=True)
        x = torch.cat([local, highest.expand(len(x), -1, -1)], 1)
        return norm_relu(self.conv4(x)).squeeze(-1)


class ReferenceTeacher(nn.Module):
    """LGD's teacher as the papers describe it, one image at a time, under its released names."""

    def __init__(self, k):
        super().__init__()
        c = CHANNELS
        self.label_encoder_ = Encoder(k)
        self.canoni_proj_1D = nn.Sequential(nn.Sequential(nn.Linear(256, c)))
        self.student_proj_2D = nn.Sequential(nn.Sequential(conv()))
        self.multi_head_attn = nn.MultiheadAttention(c, 8)
        self.local_inst_proj_1D = nn.Linear(c, c)
        self.local_inst_proj_2D = conv()
        self.global_ctx_proj_1D = nn.Linear(c, c)
        norm = nn.GroupNorm(1, c, affine=False)
        self.refinement_module = nn.Sequential(
            conv(), norm, nn.ReLU(), conv(), norm, nn.ReLU(), conv(), norm
        )

    def forward(self, x, descriptors, regions, context):
        """x: 1×C×h×w; descriptors: n×k; regions: n×h×w; the context object, if any, is the last."""
        labels = norm_relu(self.canoni_proj_1D(self.label_encoder_(descriptors))).unsqueeze(1)
        y = norm_relu(self.student_proj_2D(x).flatten()).view(CHANNELS, -1)
        appearance = torch.stack([y @ r.flatten() / max(r.sum(), 1) for r in regions])
        vectors = self.multi_head_attn(appearance.unsqueeze(1), labels, labels)[0].squeeze(1)
        objects = len(vectors) - context
        painted = torch.zeros_like(x[0])
        for vector, region in zip(vectors[:objects], regions, strict=False):
            painted = painted + self.local_inst_proj_1D(vector)[:, None, None] * region
        painted = self.local_inst_proj_2D(painted.unsqueeze(0))
        if context:
            painted = painted + self.global_ctx_proj_1D(vectors[-1])[:, None, None]
        return self.refinement_module(painted.relu())


def reference_distiller():
    layers = nn.Sequential(conv(), nn.ReLU(), conv(), nn.ReLU(), conv())
    adapter = nn.ModuleDict(dict(distill=nn.ModuleDict(dict(adapter=layers))))
    teacher = ReferenceTeacher(4 + NUM_CLASSES)
    return nn.ModuleDict(dict(teacher=teacher, adapter=adapter, student=nn.Linear(2, 2)))


def conv():
    return nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)


def norm_relu(x):
    """Norm over all but the first axis, of x with one axis over everything."""
    shape = x.shape[1:] if x.ndim > 1 else x.shape
    return F.layer_norm(x, shape).relu()


OBJECTS = [[((0, 0, 28, 28), 1), ((14, 28, 56, 42), 0)], [((28, 14, 42, 56), 1)]]


def samples():
    made = []
    for objects in OBJECTS:
        sample = DetDataSample(metainfo=dict(img_shape=(SIDE, SIDE)))
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([box for box, _ in objects]).float(),
            labels=torch.tensor([label for _, label in objects]),
        )
        made.append(sample)
    return made


def described(objects, context):
    """Descriptors of the objects and the context object, one a row."""
    rows = []
    for box, label in [*objects, *[((0, 0, SIDE - 1, SIDE - 1), -1)] * context]:
        one_hot = [float(label == i) for i in range(NUM_CLASSES)]
        rows.append([*(x / SIDE for x in box), *one_hot])
    return 2 * torch.tensor(rows) - 1


def regions_of(objects, side, context):
    regions = [
        box_region(box, (SIDE, SIDE), (side, side), soft=False).float() for box, _ in objects
    ]
    return regions + [torch.ones(side, side)] * context


def reference_features(teacher, feats, context):
    levels = []
    for level in feats:
        regions = [regions_of(objects, level.shape[-1], context) for objects in OBJECTS]
        images = zip(level, OBJECTS, regions, strict=True)
        images = [teacher(x[None], described(y, context), z, context) for x, y, z in images]
        levels.append(torch.cat(images))
    return levels


@pytest.mark.parametrize('context', [False, True])
def test_converted_weights_give_the_reference_codes_features(tmp_path, context):
    reference = reference_distiller()
    weights = reference.state_dict()
    if context:  # arrays are weights too
        weights = {k: v.numpy() for k, v in weights.items()}
    torch.save({'model': weights, 'iteration': 179999}, tmp_path / 'lgd.pth')
    convert_lgd(tmp_path / 'lgd.pth', tmp_path / 'ours.pth', context)

    teacher = dict(add_context_box=context, soft_regions=False, class_vectors=False)
    distiller = MODELS.build(dict(TOY_MODEL, teacher=teacher))
    content = load_checkpoint(distiller, str(tmp_path / 'ours.pth'))
    parts = {x for x in distiller.state_dict() if not x.startswith('student.')}
    assert content['state_dict'].keys() == parts

    feats = [torch.randn(2, CHANNELS, side, side) for side in (16, 8)]
    with torch.no_grad():
        expected = reference_features(reference['teacher'], feats, context)
        found = distiller.teachers['teacher'].neck(feats, torch.zeros(2, 3, SIDE, SIDE), samples())
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
        adapter = reference['adapter']['distill']['adapter']
        for ours, x in zip(distiller.terms['distill'].adapter(feats), feats, strict=True):
            torch.testing.assert_close(ours, adapter(x), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda state: {'state_dict': state}, 'of 58 expected weights .* 58 are missing'),
        (
            lambda state: {'model': {k: v for k, v in state.items() if 'multi_head' not in k}},
            '4 are missing, such as teacher.multi_head_attn.in_proj_weight',
        ),
        (
            lambda state: {'model': {**state, 'teacher.gate.weight': torch.zeros(1)}},
            'does not have: teacher.gate.weight',
        ),
        (lambda state: torch.zeros(3), 'not a checkpoint of LGD'),
    ],
)
def test_other_checkpoints_are_refused(tmp_path, change, message):
    torch.save(change(reference_distiller().state_dict()), tmp_path / 'x.pth')
    with pytest.raises(ConfigError, match=message):
        convert_lgd(tmp_path / 'x.pth', tmp_path / 'ours.pth')
    assert not (tmp_path / 'ours.pth').exists()
