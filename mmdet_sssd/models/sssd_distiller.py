from typing import Any, ClassVar

from mmdet.registry import MODELS
from mmdet.utils import ConfigType, OptConfigType, OptMultiConfig

from ..errors import ConfigError
from .building import completed, config_class
from .distiller import Distiller
from .replay import Factors

TEACHER, TERM = 'teacher', 'distill'


@MODELS.register_module()
class SSSDDistiller(Distiller):
    r"""Trains a detector, the student, jointly with an implicit teacher.

    .. math:: L = L_{det}(x) + w \, L_{det}(t) + \lambda \, L_{distill}(A(x), t)

    with the student's features x, the teacher's features t, computed from x and the labels, and the
    adapter A. Both sides are instance-normalised before :math:`L_{distill}`, and t is
    detached there. As t depends on x, L_det(t) also trains the student's backbone and neck, unless the
    teacher's ``detach_appearance`` is set.

    Sources: SSSD (https://arxiv.org/abs/2303.05015); ``mmdet_sssd.recipes.lgd`` makes it LGD
    (https://arxiv.org/abs/2109.11496).

    This is a :class:`Distiller` with the teacher ``teacher`` and the term ``distill``::

        teachers=dict(teacher=dict(type='ImplicitTeacher', neck=teacher,
                                   loss_weight=teacher_loss_weight, start_level=start_level,
                                   reuse_assignment=reuse_assignment,
                                   head_grad=teacher_head_grad), **teachers),
        terms=dict(distill=dict(type='FeatureTerm', teacher='teacher', adapter=adapter,
                                distill_loss=distill_loss, distill_coef=distill_coef,
                                normalize=True), **terms)

    The log has ``teacher.loss_cls`` …, ``loss_distill``, ``distill_distance.p`` for each
    distilled feature level p, and with ``AdaptiveDistillCoefHook`` also ``distill_coef``.

    Args:
        student: As in :class:`Distiller`.
        teacher: Config of the neck that makes the teacher's features; ``type`` defaults to
            ``'LabelEncoderTeacher'``, ``in_channels`` and ``num_classes`` to the student's, that
            type's ``detach_appearance`` to True for two-stage students, as in the papers.
        adapter: Config of the adapter; ``type`` defaults to ``'FeatureAdapter'``, ``in_channels`` to
            the student's.
        distill_loss: Config of a ``FeatureLoss`` between the feature levels; ``type`` defaults to
            ``'JSDistanceLoss'``.
        distill_coef: λ, >= 0; hooks may change it during training. Defaults to the loss's
            ``default_coef``: 10 for ``JSDistanceLoss``, else 1.
        teacher_loss_weight: w, >= 0. 0 leaves the teacher untrained (for experiments). Defaults to 1.
        teacher_head_grad: How much the teacher's loss trains the student's head, or factors by
            parameter, such as ``dict(cls=0)``; see :class:`~mmdet_sssd.models.ImplicitTeacher`.
            Defaults to 1.
        start_level: Index of the first distilled feature level; 1 skips the finest. See
            :class:`~mmdet_sssd.models.ImplicitTeacher`. Defaults to 0, with ``economy`` to 1
            if the first level is the finest.
        reuse_assignment: Whether the teacher's pass reuses label assignments that depend on the
            student's predictions; see :class:`~mmdet_sssd.models.ImplicitTeacher`. Defaults to False.
        economy: Whether unset options take cheaper values: ``start_level=1``, an adapter of one 1×1
            convolution, and a single convolution that refines the teacher's features, for the
            default types of adapter and teacher. Defaults to False.
        teachers: Further teachers, as in :class:`Distiller`.
        terms: Further terms, as in :class:`Distiller`; each names its ``teacher``.
        data_preprocessor: As in :class:`Distiller`.
        init_cfg: As in mmengine.

    Raises:
        ConfigError: if the student cannot be distilled or a part refuses its settings; the message
            names the key.
    """

    CONFIG_KEYS: ClassVar = {
        f'teachers.{TEACHER}': (
            'model',
            dict(
                neck='model.teacher',
                loss_weight='model.teacher_loss_weight',
                head_grad='model.teacher_head_grad',
            ),
        ),
        f'terms.{TERM}': ('model', {}),
    }

    def __init__(
        self,
        student: ConfigType,
        teacher: OptConfigType = None,
        adapter: OptConfigType = None,
        distill_loss: OptConfigType = None,
        distill_coef: float | None = None,
        teacher_loss_weight: float = 1.0,
        teacher_head_grad: float | Factors = 1.0,
        start_level: int | None = None,
        reuse_assignment: bool = False,
        economy: bool = False,
        teachers: dict[str, ConfigType] | None = None,
        terms: dict[str, ConfigType] | None = None,
        data_preprocessor: OptConfigType = None,
        init_cfg: OptMultiConfig = None,
    ) -> None:
        _check_not_taken('teachers', teachers, TEACHER)
        _check_not_taken('terms', terms, TERM)
        if start_level is None and not economy:
            start_level = 0  # None skips the finest
        neck_defaults = dict(refine_convs=1) if economy else {}
        if isinstance(student, dict) and 'roi_head' in student:
            neck_defaults['detach_appearance'] = True
        adapter_defaults = dict(num_convs=1, kernel_size=1) if economy else {}
        implicit_teacher = dict(
            type='ImplicitTeacher',
            neck=_with_defaults('teacher', teacher, 'LabelEncoderTeacher', neck_defaults),
            loss_weight=teacher_loss_weight,
            head_grad=teacher_head_grad,
            start_level=start_level,
            reuse_assignment=reuse_assignment,
        )
        term = dict(
            type='FeatureTerm',
            teacher=TEACHER,
            adapter=_with_defaults('adapter', adapter, 'FeatureAdapter', adapter_defaults),
            distill_loss=completed('model.distill_loss', distill_loss, type='JSDistanceLoss'),
            distill_coef=distill_coef,
            normalize=True,
        )
        super().__init__(
            student,
            {TEACHER: implicit_teacher, **(teachers or {})},
            {TERM: term, **(terms or {})},
            data_preprocessor,
            init_cfg,
        )


def _check_not_taken(kind: str, configs: dict[str, ConfigType] | None, reserved: str) -> None:
    """Refuse a further teacher or term that would replace the preset's own."""
    if isinstance(configs, dict) and reserved in configs:
        raise ConfigError(
            "is the preset's own, set by keys of model; accepted: another name",
            f'model.{kind}.{reserved}',
        )


def _with_defaults(
    key: str, config: OptConfigType, default_type: str, defaults: dict[str, Any]
) -> ConfigType:
    """Complete a part's config; the defaults only fit the default type."""
    config = completed(f'model.{key}', config, type=default_type)
    return {**defaults, **config} if config_class(config) is MODELS.get(default_type) else config
