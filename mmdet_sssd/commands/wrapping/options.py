"""The settings of a wrapped config beside its stock config."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmdet.registry import HOOKS, MODELS
from mmengine.registry import Registry

from ...errors import ConfigError

RECIPES = ('gentle', 'paper')
SHARED_HOOKS = {
    'distill_coef': ('AdaptiveDistillCoefHook', 'λ follows the learning rate'),
    'detach_student': ('DetachStudentHook', 'first 1/6: distilling trains only the adapter'),
    'freeze_backbone': ('FreezeBackboneHook', 'first 1/9: freezes a pretrained backbone'),
    'teacher_schedule': ('TeacherScheduleHook', 'second half: stock training'),
    'random_state': ('RandomStateHook', 'a resumed run draws the same numbers'),
    'check_dataset': ('CheckDatasetHook', 'finds wrong labels before training'),
    'checkpoint': ('SafeCheckpointHook', 'a run killed at any moment can be resumed'),
    'preemption': ('PreemptionHook', 'at a signal, a run saves and ends'),
    'export_student': ('ExportStudentHook', 'the last (and best) student, for stock mmdet'),
}
"""Types and comments of the hooks, by name; ``configs/_base_/sssd.py`` has the paper's."""

RANKING_BRANCHES = ('cls', 'centerness', 'iou', 'obj', 'heat', 'rpn_head', 'roi_head')
"""In names of heads' parameters: branches that rank boxes, which the gentle recipe's teacher does not
train, since it sees the labels. In two-stage detectors they share layers with the box branches."""

RATIO, RATIO_COMMENT = 0.25, 'distilling pulls 1/4 as hard as the detection loss'


@dataclass(frozen=True)
class WrappingOptions:
    """Settings of a wrapped config; None keeps the stock config's value or the default.

    Args:
        recipe: ``'gentle'`` or ``'paper'``. The gentle one, which rests on docs/benchmarks.md, keeps
            λ's pull at a quarter of the detection loss's, leaves what ranks boxes to the student's own
            loss, has the cheapest settings, and ends distilling after half of the run.
        loss: ``distill_loss.type``.
        dim: ``distill_loss.dim``.
        tau: ``distill_loss.tau``.
        distill_coef: λ, which the gentle recipe then does not balance either.
        policy: ``policy`` of the λ hook.
        factor: ``factor`` of the λ hook.
        max_decays: ``max_decays`` of the λ hook; -1 for no limit.
        context_box: ``teacher.add_context_box``.
        detach_appearance: ``teacher.detach_appearance``. Defaults to True for two-stage detectors.
        masks: ``teacher.use_masks``; True also makes the training pipelines load masks.
        economy: Whether to set ``economy=True``, the cheapest settings.
        from_scratch: Whether to leave out the paper's hook that freezes the backbone at first.
        data_root: Folder of a COCO-format data set.
        train_ann: Training annotation file in ``data_root``.
        val_ann: Annotation file in ``data_root`` for validation and test.
        train_img: Training image folder in ``data_root``.
        val_img: Image folder in ``data_root`` for validation and test.
        classes: Class names; None reads them from the training annotations if ``data_root`` or
            ``train_ann`` is given, and keeps the stock config's otherwise.
    """

    recipe: str = 'gentle'
    loss: str | None = None
    dim: str | None = None
    tau: float | None = None
    distill_coef: float | None = None
    policy: str | None = None
    factor: float | None = None
    max_decays: int | None = None
    context_box: bool | None = None
    detach_appearance: bool | None = None
    masks: bool | None = None
    economy: bool = False
    from_scratch: bool = False
    data_root: str | None = None
    train_ann: str | None = None
    val_ann: str | None = None
    train_img: str | None = None
    val_img: str | None = None
    classes: Sequence[str] | None = None

    @property
    def is_gentle(self) -> bool:
        """Whether the recipe is the gentle one."""
        return self.recipe == 'gentle'

    @property
    def ratio(self) -> float | None:
        """``ratio`` of the λ hook."""
        return RATIO if self.is_gentle and self.distill_coef is None else None

    def distiller(self) -> dict[str, Any]:
        """Make the keys of ``model`` that differ from the defaults, without type and student.

        Raises:
            ConfigError: if the loss has no such setting.
        """
        loss = {'type': self.loss or 'JSDistanceLoss', **_without_none(dim=self.dim, tau=self.tau)}
        accepted = inspect.signature(MODELS.get(loss['type'])).parameters
        unknown = [f'--{key}' for key in loss if key != 'type' and key not in accepted]
        if unknown:
            raise ConfigError(f'{loss["type"]} has no {" and no ".join(unknown)}; leave it out')
        teacher = _without_none(
            type='LabelEncoderTeacher',
            add_context_box=self.context_box,
            detach_appearance=self.detach_appearance,
            use_masks=self.masks,
        )
        teacher, loss = (without_defaults(x, MODELS) for x in (teacher, loss))
        del teacher['type']
        return _without_none(
            teacher=teacher or None,
            distill_loss=None if loss == {'type': 'JSDistanceLoss'} else loss,
            distill_coef=self.distill_coef,
            teacher_head_grad={'cls': 0} if self.is_gentle else None,
            economy=self.economy or self.is_gentle or None,
        )

    def hooks(self) -> dict[str, dict]:
        """Make the hooks, without arguments that equal the defaults."""
        hooks = {name: dict(type=kind) for name, (kind, _) in SHARED_HOOKS.items()}
        if self.from_scratch or self.is_gentle:
            del hooks['freeze_backbone']
        if self.is_gentle:
            hooks['teacher_schedule']['until'] = 0.5
        else:
            del hooks['teacher_schedule']
        limit = 1 if self.max_decays is None else self.max_decays
        hooks['distill_coef'] |= _without_none(
            ratio=self.ratio, policy=self.policy, factor=self.factor
        )
        hooks['distill_coef']['max_decays'] = None if limit == -1 else limit
        return {name: without_defaults(hook, HOOKS) for name, hook in hooks.items()}

    def comments(self) -> dict[str, str]:
        """Make the hooks' comments."""
        comments = {name: comment for name, (_, comment) in SHARED_HOOKS.items()}
        return comments | ({'distill_coef': RATIO_COMMENT} if self.ratio else {})


def without_defaults(config: dict[str, Any], registry: Registry) -> dict[str, Any]:
    """Drop the arguments of a module's config that equal its class's defaults."""
    parameters = inspect.signature(registry.get(config['type'])).parameters
    return {
        key: value
        for key, value in config.items()
        if key not in parameters or value != parameters[key].default
    }


def _without_none(**settings: Any) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if value is not None}
