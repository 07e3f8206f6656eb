import math
import re
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, TypeVar

import torch
from mmdet.models import BaseDetector
from mmdet.models.utils import rename_loss_dict, reweight_loss_dict
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.structures.bbox import get_box_tensor
from mmdet.utils import ConfigType, OptConfigType, OptMultiConfig, reduce_mean
from mmengine.model import ModuleDict
from torch import Tensor

from ..errors import ConfigError, warn, within
from .building import build_part, is_config_of
from .dense_head import HeadRecord
from .replay import (
    DetectorOutputs,
    Results,
    batch_stats_used,
    fresh_samples,
    given_feats,
    head_grad_scaled,
    map_tensors,
    results_recorded,
    results_reused,
    state_restored,
)
from .student import build_student
from .teachers import Teacher
from .terms import DistillTerm

# A decorator: the method runs eagerly, while what it calls may be compiled.
compiled_in_parts = partial(torch.compiler.disable, recursive=False)

Part = TypeVar('Part', Teacher, DistillTerm)


@MODELS.register_module()
class Distiller(BaseDetector):
    r"""Trains a detector, the student, to match its teachers in distillation terms.

    .. math:: L = L_{det}(x) + \sum_j w_j L_{det}(t_j) + \sum_i \lambda_i L_i

    with the student's own losses on its features x; the same losses computed again on the features
    :math:`t_j` of each trained teacher, by the student's heads (replay); and the terms :math:`L_i`,
    each comparing the student's outputs with one teacher's. Only the student runs at inference.

    The log has the student's losses under their own names, what is logged on a teacher's features as
    ``TEACHER.…``, and for each term ``loss_NAME``, λ included, and its other values as
    ``NAME_…``. The state dict has ``student.*``, ``teachers.NAME.*`` and ``terms.NAME.*``; a stock
    detector's state dict loads into the student. Attributes that this class lacks (``bbox_head``,
    ``with_rpn`` …) are the student's.

    Args:
        student: Config of any detector whose ``loss`` uses the features of ``extract_feat``.
        teachers: Configs of the teachers (:class:`~mmdet_sssd.models.teachers.Teacher`) by name,
            such as ``dict(large=dict(type='PretrainedTeacher', config=…, checkpoint=…))``.
        terms: Configs of the terms (:class:`~mmdet_sssd.models.terms.DistillTerm`) by name, such as
            ``dict(ssim=dict(type='FeatureTerm', distill_loss=dict(type='SSIMLoss')))``. With
            several teachers each term names its own by ``teacher``.
        data_preprocessor: Data preprocessor for a student without one; runners pass a top-level
            ``data_preprocessor`` here. Defaults to the student's.
        init_cfg: As in mmengine.

    Attributes:
        num_dropped_boxes: Number of labelled boxes left out because less than a pixel of their width
            or height lies in the image; stock losses are not finite on some of them.
        gradient_taps: Measures, on steps for which a term asks, the gradients that the student's own
            losses (``'student'``), the teachers' (``'teachers'``) and each term (``'terms.NAME'``)
            send into the student's features.

    Raises:
        ConfigError: if the student cannot be distilled, a teacher or term has the wrong class, or one
            of them refuses its settings; the message names the key.
    """

    CONFIG_KEYS: ClassVar[dict[str, tuple[str, dict[str, str]]]] = {}
    """For errors: the arguments of :func:`~mmdet_sssd.errors.within` for parts, such as
    ``teachers.NAME``, whose settings are not at ``model.teachers.NAME``."""

    def __init__(
        self,
        student: ConfigType,
        teachers: dict[str, ConfigType] | None = None,
        terms: dict[str, ConfigType] | None = None,
        data_preprocessor: OptConfigType = None,
        init_cfg: OptMultiConfig = None,
    ) -> None:
        built_student = build_student(student, data_preprocessor)
        super().__init__(data_preprocessor=built_student.data_preprocessor, init_cfg=init_cfg)
        self.student = built_student
        # teachers and terms draw no numbers of the generator that initialises the student
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(torch.initial_seed() + 1)
            self.teachers = ModuleDict()
            for name, config in _check_part_names(teachers, 'teachers').items():
                self.teachers[name] = self._build('teachers', name, config, Teacher)
            if not self.teachers:
                raise ConfigError(
                    "is empty; give a teacher, such as dict(large=dict(type='PretrainedTeacher', "
                    'config=…, checkpoint=…)), and model.terms',
                    'model.teachers',
                )
            self.terms = ModuleDict()
            for name, config in _check_part_names(terms, 'terms').items():
                self.terms[name] = self._build_term(name, config)
        self._check_teachers_are_used()
        self.num_dropped_boxes = 0
        self.gradient_taps = GradientTaps()

    def _build(
        self, kind: str, name: str, config: ConfigType, cls: type[Part], **arguments: Any
    ) -> Part:
        """Build a teacher or a term."""
        key, names = self.CONFIG_KEYS.get(f'{kind}.{name}', (f'model.{kind}.{name}', {}))
        part = build_part(key, config, cls, names=names, student=self.student, **arguments)
        part.config_keys = key, names
        return part

    def _build_term(self, name: str, config: ConfigType) -> DistillTerm:
        """Build a term; if it compares heads, note that its teacher's is needed."""
        teacher = config.get('teacher') if isinstance(config, dict) else None
        if teacher is None and len(self.teachers) == 1:
            (teacher,) = self.teachers
        if teacher not in [*self.teachers]:  # a wrong one may be unhashable
            raise ConfigError(
                f'is {teacher!r}; accepted: the name of one of model.teachers: '
                f'{", ".join(self.teachers) or "none"}',
                f'model.terms.{name}.teacher',
            )
        if isinstance(config, dict):
            config = {key: value for key, value in config.items() if key != 'teacher'}
        term = self._build('terms', name, config, DistillTerm, teacher=self.teachers[teacher])
        term.teacher_name = teacher
        self.teachers[teacher].needs_head |= term.needs_head
        return term

    def _check_teachers_are_used(self) -> None:
        used = {term.teacher_name for term in self.terms.values()}
        for name, teacher in self.teachers.items():
            if name not in used and not teacher.is_trained:
                raise ConfigError(
                    'is used by none of model.terms; add one, such as model.terms='
                    "dict(ssim=dict(type='FeatureTerm', distill_loss=dict(type='SSIMLoss')))",
                    f'model.teachers.{name}',
                )

    def init_weights(self) -> None:
        """Initialise the weights; pretrained teachers load their checkpoints first."""
        for teacher in self.teachers.values():
            if not teacher.is_trained:
                with within(*teacher.config_keys):
                    teacher.init_weights()
        super().init_weights()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == 'student':  # not built yet
                raise
            return getattr(self.student, name)

    @compiled_in_parts
    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Any]:
        """Compute the losses of student, teachers and terms.

        Args:
            batch_inputs: Images of shape (B, 3, H, W).
            batch_data_samples: Their B data samples with ground truth.

        Returns:
            The losses, scalars or a list of them by level, and other logged scalars, by name.

        Raises:
            ConfigError: if labelled boxes are not axis-aligned, a teacher lacks what it needs of a
                batch, or two parts log a value of the same name.
        """
        samples = self._without_degenerate_boxes(batch_data_samples)
        losses, outputs, results = self._student_pass(batch_inputs, samples)
        teacher_losses, teacher_outputs = self._teacher_passes(
            outputs, results, batch_inputs, samples
        )
        add_losses(losses, teacher_losses, 'teachers', self.teachers)
        term_losses = self._term_losses(outputs, teacher_outputs, batch_inputs, samples)
        add_losses(losses, term_losses, 'terms', self.terms)
        return losses

    @torch.compiler.disable
    def _without_degenerate_boxes(self, batch_data_samples: SampleList) -> SampleList:
        """Drop the labelled objects whose box is less than a pixel wide or high within its image.

        One flag per box is read from the device in a single transfer, before the expensive work is
        queued there.
        """
        boxes = [get_box_tensor(sample.gt_instances.bboxes) for sample in batch_data_samples]
        kept = [
            covers_a_pixel(x, sample.get('img_shape', None))
            for x, sample in zip(boxes, batch_data_samples, strict=True)
        ]
        flags = torch.cat(kept).cpu()
        if flags.all():
            return batch_data_samples
        samples = fresh_samples(batch_data_samples)
        for sample, keep in zip(samples, kept, strict=True):
            sample.gt_instances = sample.gt_instances[keep]
        self._count_dropped_boxes(int((~flags).sum()), len(flags), samples)
        return samples

    @compiled_in_parts
    def _student_pass(
        self, batch_inputs: Tensor, samples: SampleList, images: list[int] | None = None
    ) -> tuple[dict[str, Any], DetectorOutputs, Results | None]:
        """Compute the student's own losses.

        Args:
            batch_inputs: Images of shape (B, 3, H, W).
            samples: Their B data samples.
            images: Indices of the images that the losses use. None: all.

        Returns:
            The losses, the student's outputs for all B images, and the results that a trained
            teacher's pass reuses; None if no teacher is trained.
        """
        student, teachers = self.student, [x for x in self.teachers.values() if x.active]
        feats = self._tapped('student', student.extract_feat(batch_inputs))
        rows = images
        if images is not None:
            starts = range(0, len(feats[0]), len(samples))  # three in TridentNet's training
            rows = [start + i for start in starts for i in images]
            batch_inputs, samples = batch_inputs[images], [samples[i] for i in images]
        record = HeadRecord(student, rows) if any(x.needs_head for x in teachers) else None
        used_feats = feats
        if rows is not None and not (record and record.head):
            used_feats = map_tensors(lambda x: x[rows], feats)
        is_reused = any(x.is_trained for x in teachers)
        recorded = results_recorded(student) if is_reused else nullcontext()
        with given_feats(student, used_feats), record or nullcontext(), recorded as results:
            losses = student.loss(batch_inputs, fresh_samples(samples))
        feats = self._tapped('teachers', feats)
        return losses, record.outputs(feats) if record else DetectorOutputs(feats), results

    @compiled_in_parts
    def _teacher_passes(
        self,
        outputs: DetectorOutputs,
        results: Results | None,
        batch_inputs: Tensor,
        samples: SampleList,
    ) -> tuple[dict[str, Any], dict[str, DetectorOutputs]]:
        """Run the teachers, and the student's head on the features of trained ones.

        Args:
            outputs: The student's outputs.
            results: What the student's pass computed, to be reused.
            batch_inputs: Images of shape (B, 3, H, W).
            samples: Their B data samples.

        Returns:
            The losses of the trained teachers, and the outputs of all active ones, by name.
        """
        losses: dict[str, Any] = {}
        teacher_outputs = {}
        for name, teacher in self.teachers.items():
            if not teacher.active:
                continue
            with within(*teacher.config_keys):
                given = outputs.detach() if teacher.trains_alone else outputs
                teacher_outputs[name] = teacher(self.student, given, batch_inputs, samples)
            if teacher.is_trained:
                own, teacher_outputs[name] = self._trained_pass(
                    teacher, teacher_outputs[name].feats, results, batch_inputs, samples
                )
                if teacher.loss_weight != 1:
                    own = reweight_loss_dict(own, teacher.loss_weight)
                losses.update(rename_loss_dict(f'{name}.', own))
        return losses, teacher_outputs

    @compiled_in_parts
    def _trained_pass(
        self,
        teacher: Teacher,
        feats: Sequence[Tensor],
        results: Results,
        batch_inputs: Tensor,
        samples: SampleList,
    ) -> tuple[dict[str, Any], DetectorOutputs]:
        """Compute the student's loss on a teacher's features, without changing the student."""
        student = self.student
        head_grad = {'': 0.0} if teacher.trains_alone else teacher.head_grad
        record = HeadRecord(student) if teacher.needs_head else None
        with (
            state_restored(student),  # first: the others replace methods of its copies
            given_feats(student, feats),
            record or nullcontext(),
            results_reused(student, results, teacher.reuses_assignment, teacher.start_level),
            head_grad_scaled(student, head_grad),
        ):
            losses = student.loss(batch_inputs, fresh_samples(samples))
        return losses, record.outputs(feats) if record else DetectorOutputs(feats)

    @compiled_in_parts
    def _term_losses(
        self,
        outputs: DetectorOutputs,
        teacher_outputs: dict[str, DetectorOutputs],
        batch_inputs: Tensor,
        samples: SampleList,
    ) -> dict[str, Tensor]:
        """Compute the terms' losses; no gradient reaches a teacher."""
        losses = {}
        teacher_outputs = {name: x.detach() for name, x in teacher_outputs.items()}
        for name, term in self.terms.items():
            if term.teacher_name not in teacher_outputs:
                continue
            outputs = replace(outputs, feats=self._tapped(f'terms.{name}', outputs.feats))
            student = outputs.detach() if term.detach_student else outputs
            with within(*term.config_keys):
                logged = dict(
                    term(student, teacher_outputs[term.teacher_name], batch_inputs, samples)
                )
                _check_only_loss(logged)
            losses[f'loss_{name}'] = term.distill_coef * logged.pop('loss')
            losses.update({f'{name}_{key}': value for key, value in logged.items()})
        return losses

    @torch.compiler.disable
    def _tapped(self, user: str, feats: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the features for their next user; on measured steps, with taps on their gradients."""
        is_measured = any(
            x.is_measured and not x.detach_student and self.teachers[x.teacher_name].active
            for x in self.terms.values()
        )
        return self.gradient_taps.tap(user, feats) if is_measured else feats

    def _count_dropped_boxes(self, num_dropped: int, num_boxes: int, samples: SampleList) -> None:
        """Count the dropped boxes, and warn the first time."""
        if not self.num_dropped_boxes:
            images = [s.metainfo['img_path'] for s in samples if s.metainfo.get('img_path')]
            warn(
                f'{num_dropped} of the {num_boxes} labelled boxes of a batch are less than a pixel '
                'wide or high within their image after the training pipeline; such boxes are left out '
                'of training, without further warnings. The images of the batch: '
                f'{", ".join(images) or "unnamed"}.'
            )
        self.num_dropped_boxes += num_dropped

    def predict(self, batch_inputs: Tensor, batch_data_samples: SampleList, **kwargs) -> SampleList:
        """Predict with the student's ``predict``."""
        return self.student.predict(batch_inputs, batch_data_samples, **kwargs)

    def predict_with_teacher(
        self, name: str, batch_inputs: Tensor, batch_data_samples: SampleList, **kwargs
    ) -> SampleList:
        """Predict with the student's head on a teacher's features.

        An implicit teacher sees the labels, so its predictions show how well it encodes them. Batch
        norms of the head normalise the teacher's features by the batch, as in training.

        Args:
            name: The teacher's name.
            batch_inputs: Images of shape (B, 3, H, W).
            batch_data_samples: Their B data samples with ``gt_instances`` in input pixels.
            **kwargs: Arguments of the student's ``predict``.

        Returns:
            The data samples with ``pred_instances``, as the student's ``predict`` returns them.
        """
        outputs = DetectorOutputs(self.student.extract_feat(batch_inputs))
        teacher_outputs = self.teachers[name](
            self.student, outputs, batch_inputs, batch_data_samples
        )
        with given_feats(self.student, teacher_outputs.feats), batch_stats_used(self.student):
            return self.student.predict(batch_inputs, batch_data_samples, **kwargs)

    def extract_feat(self, batch_inputs: Tensor) -> Sequence[Tensor]:
        """Extract the student's features, one map of shape (B, C, h, w) per level."""
        return self.student.extract_feat(batch_inputs)

    def _forward(self, batch_inputs: Tensor, batch_data_samples: Any = None) -> Any:
        return self.student._forward(batch_inputs, batch_data_samples)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        """Load a distiller's state dict, or a stock detector's into the student.

        Raises:
            ConfigError: if the state dict mixes weights of a distiller and of a stock detector, or
                none of its weights fits the student.
        """
        own = {f'{prefix}student.{key}' for key in self.student.state_dict()}
        stock = {key for key in state_dict if f'{prefix}student.{key[len(prefix) :]}' in own}
        parts = ('student.', 'teachers.', 'terms.')
        ours = [key for key in state_dict if key.startswith(parts, len(prefix))]
        if stock and ours:
            raise ConfigError(
                f'a checkpoint has weights of a distiller ({ours[0]}) and of a stock detector '
                f'({min(stock)}); remove either'
            )
        of_student = [key for key in ours if key.startswith('student.', len(prefix))]
        is_foreign = own.isdisjoint(of_student) if of_student else not (stock or ours)
        if state_dict and is_foreign:
            raise ConfigError(
                f'none of the {len(state_dict)} weights of a checkpoint is one of model.student, a '
                f'{type(self.student).__name__}: it has {min(of_student or state_dict)}, model.student '
                f'has {min(self.student.state_dict())}. Load weights of a backbone alone by '
                'model.student.backbone.init_cfg=dict(type="Pretrained", checkpoint=…)'
            )
        if not ours:
            for key in [key for key in state_dict if key.startswith(prefix)]:
                state_dict[f'{prefix}student.{key[len(prefix) :]}'] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _check_only_loss(logged: dict[str, Tensor]) -> None:
    """Refuse a term's further values that mmengine would add to the loss, by their names."""
    if others := [key for key in logged if 'loss' in key and key != 'loss']:
        raise ConfigError(
            f'logs {others[0]}, which counts as a loss by its name, and without λ; accepted: '
            'loss, and values without that word in their names'
        )


def is_distiller(model: ConfigType) -> bool:
    """Tell whether a model's config is a distiller's; ``type`` may be a name or a class."""
    return is_config_of(model, Distiller)


def _check_part_names(configs: dict[str, ConfigType] | None, kind: str) -> dict[str, ConfigType]:
    """Return the configs, {} for None; refuse names that do not work in a state dict or a log."""
    key = f'model.{kind}'
    if not isinstance(configs, (dict, type(None))):
        raise ConfigError(f'is {configs!r}; accepted: configs by name', key)
    for name in configs or {}:
        # mmengine sums all values whose name contains `loss`
        if not re.fullmatch(r'\w+', name) or 'loss' in name or hasattr(ModuleDict(), name):
            raise ConfigError(
                f'has the name {name!r}; accepted: letters, digits and _, without "loss" in it, and '
                'not the name of a ModuleDict attribute',
                key,
            )
    return configs or {}


def add_losses(
    losses: dict[str, Any], more: dict[str, Any], kind: str, names: Iterable[str]
) -> None:
    """Add the values that teachers or terms log to the student's losses, in place.

    Args:
        losses: The student's losses.
        more: The values.
        kind: ``'teachers'`` or ``'terms'``, for errors.
        names: Their names, for errors.

    Raises:
        ConfigError: if there is a value of that name.
    """
    if name := min(more.keys() & losses.keys(), default=None):
        owner = next(x for x in names if re.match(rf'loss_{x}$|{x}[._]', name))
        raise ConfigError(
            f'logs {name}, as another part does; give it another name', f'model.{kind}.{owner}'
        )
    losses.update(more)


def covers_a_pixel(boxes: Tensor, img_shape: Sequence[int] | None) -> Tensor:
    """Tell which boxes of shape (n, 4) have a width and height of a pixel or more in the image.

    Boxes with NaN do not. Without ``img_shape``, (height, width), the image has no end.

    Raises:
        ConfigError: if boxes do not have 4 numbers each.
    """
    if boxes.shape[-1] != 4:
        raise ConfigError(
            f'the labelled boxes have {boxes.shape[-1]} numbers each; accepted: 4, of axis-aligned '
            'boxes (x1, y1, x2, y2). Rotated boxes cannot be distilled'
        )
    height, width = (img_shape or (math.inf, math.inf))[:2]
    x1, y1 = boxes[:, 0].clamp(min=0), boxes[:, 1].clamp(min=0)
    x2, y2 = boxes[:, 2].clamp(max=width), boxes[:, 3].clamp(max=height)
    return (x2 - x1 >= 1) & (y2 - y1 >= 1)


class GradientTaps:
    """Measures the gradient that each user of shared feature levels sends into them.

    The levels pass one identity per user, one after the other::

        feats ──> identity ──> identity ──> identity
                     └> head      └> teacher   └> term

    The backward pass reaches the users in reverse order, with or without identities. The gradient at
    an identity is therefore the sum of its user's and all later users' gradients, and subtracting the
    next identity's sum leaves the user's own. Autograd forms these sums anyway, so all gradients stay
    the same to the bit; identities side by side would change them. A user's gradient is as exact as
    the sum it is taken from.

    Example:
        >>> taps, feats = GradientTaps(), (torch.ones(1, 1, 1, 1, requires_grad=True),)
        >>> head_feats = taps.tap('head', feats)
        >>> term_feats = taps.tap('term', head_feats)
        >>> (3 * head_feats[0] - 4 * term_feats[0]).sum().backward()
        >>> taps.norms('term', 'head')
        (4.0, 3.0)
    """

    def __init__(self) -> None:
        self.squares: dict[str, Tensor] = {}  # by user, one per level
        self.sum_of_later: dict[int, Tensor] = {}  # at the last identity reached, by level

    def clear(self) -> None:
        """Discard all measurements."""
        self.squares.clear()
        self.sum_of_later.clear()

    def tap(self, user: str, feats: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the levels for their next user, with taps on their gradients.

        Args:
            user: The user's name. The squared norms of calls with one name add up.
            feats: Levels of shape (B, C_p, h_p, w_p), as returned by the previous call; the first
                user's are the original ones.
        """
        if user not in self.squares:
            dtype = torch.promote_types(feats[0].dtype, torch.float32)
            self.squares[user] = feats[0].new_zeros(len(feats), dtype=dtype)
        tapped = [x.view_as(x) if x.requires_grad else x for x in feats]
        for level, x in enumerate(tapped):
            if x.requires_grad:
                x.register_hook(partial(self._add_own_part, user, level))
        return type(feats)(tapped)

    def _add_own_part(self, user: str, level: int, gradient: Tensor) -> None:
        """Add the user's own part of the gradient at its identity."""
        squares = self.squares[user]
        own = gradient.to(squares.dtype)
        if level in self.sum_of_later:
            own = own - self.sum_of_later.pop(level)
        squares[level] += torch.linalg.vector_norm(own).square()
        if user != next(iter(self.squares)):  # the first user's sum is subtracted from no other
            self.sum_of_later[level] = gradient

    def norms(self, user: str, other: str) -> tuple[float, float] | None:
        """Compute two users' gradient norms over the levels that the first user's gradient reaches.

        Squares are averaged over processes. Two numbers are read from the device.

        Args:
            user: The first user, which selects the levels.
            other: The second user.

        Returns:
            Both norms; None if one of the users was not tapped.
        """
        if not {user, other} <= self.squares.keys():
            return None
        squares = reduce_mean(torch.stack([self.squares[user], self.squares[other]]))
        reached = squares.where(squares[0] != 0, 0)
        return tuple(reached.sum(1).sqrt().tolist())
