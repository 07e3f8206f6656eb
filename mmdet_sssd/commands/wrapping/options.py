import os.path as osp
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...errors import ConfigError
from ...recipes import RECIPES, backbone, structural_kd


@dataclass(frozen=True)
class WrappingOptions:
    """The options of ``wrap``; see its help.

    ``data`` has the arguments of :func:`~mmdet_sssd.datasets.use_data`. Classes that are not given are
    read from the training annotations if ``data_root`` or ``train_ann`` is.

    Raises:
        ConfigError: if one option needs or excludes another.
    """

    recipe: str | None = None
    teacher: tuple[str, str] | None = None
    method: str | None = None
    backbone_teacher: str | None = None
    unlabelled: str | None = None
    unlabelled_img: str | None = None
    masks: bool = False
    data: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        needs_teacher = [x for x in ('method', 'unlabelled') if getattr(self, x)]
        if needs_teacher and not self.teacher:
            raise ConfigError(f'--{needs_teacher[0]} needs --teacher, a detector to learn from')
        if self.unlabelled_img and not self.unlabelled:
            raise ConfigError('--unlabelled-img needs --unlabelled, a COCO file with these images')
        for name in ('recipe', 'backbone_teacher'):
            if self.unlabelled and getattr(self, name):
                raise ConfigError(
                    f'--{name.replace("_", "-")} is {getattr(self, name)}; with --unlabelled there is '
                    'one teacher, which labels images. Accepted beside it: --method'
                )
        if self.masks and self.recipes[0] not in RECIPES:
            raise ConfigError('--masks is for the teachers of --recipe; give one, or drop --masks')

    @property
    def recipes(self) -> tuple[str, ...]:
        """Names of the recipes; the first says what the distiller is."""
        method = self.method or ('structural_kd' if self.teacher and not self.unlabelled else None)
        semi = 'semi' if self.unlabelled else None
        names = (self.recipe, semi, method, 'backbone' if self.backbone_teacher else None)
        return tuple(x for x in names if x) or ('gentle',)

    @property
    def teachers(self) -> dict[str, dict]:
        """Configs of the teachers from outside, by name."""
        teachers = {}
        if self.teacher:
            config, checkpoint = self.teacher
            found = dict(type='PretrainedTeacher', config=config, checkpoint=checkpoint)
            teachers[structural_kd.TEACHER] = found
        if self.backbone_teacher:
            name, _, file = self.backbone_teacher.partition('=')
            if osp.isfile(name):
                raise ConfigError(f'--backbone-teacher is a file; accepted: MODEL={name}')
            weights = dict(checkpoint=file) if file else {}
            found = dict(type='BackboneTeacher', backbone=name, **weights)
            teachers[backbone.TEACHER] = found
        return teachers
