from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from functools import cache
from typing import Any

import torch
from mmdet.models import BaseDetector
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ..errors import ConfigError, within
from .outputs import DetectorOutputs, outputs_on

SIZE = 320  # pixels a side; SSD needs more than 256


class BlankPass:
    """What a student and its teachers make of a blank image of 320×320 without objects, on the CPU.

    Parts of a distiller read their channels and levels off it. Each pass is made when it is first
    asked for: a student that runs on a GPU alone can be distilled with channels given.

    Args:
        detector: The student.

    Attributes:
        detector: The student.
    """

    def __init__(self, detector: BaseDetector) -> None:
        self.detector = detector
        self.images = torch.zeros(1, 3, SIZE, SIZE)
        sample = DetDataSample(metainfo=dict(img_shape=(SIZE, SIZE)))
        sample.gt_instances = InstanceData(
            bboxes=torch.zeros(0, 4),
            labels=torch.zeros(0, dtype=torch.long),
            masks=BitmapMasks([], SIZE, SIZE),
        )
        self.samples = [sample]
        self._student = cache(self._run_student)  # copies share it

    def with_teacher(self, key: str, teacher: nn.Module) -> 'BlankPass':
        """Make one for a term, with what its teacher makes; ``key`` is the teacher's, for errors."""
        blank = copy(self)
        blank._teacher = cache(lambda with_head: self._run_teacher(key, teacher, with_head))
        return blank

    @property
    def student(self) -> DetectorOutputs:
        """The student's features.

        Raises:
            ConfigError: if its ``extract_feat`` fails or gives something else than a pyramid.
        """
        return self._student()

    @property
    def teacher(self) -> DetectorOutputs:
        """The features of a term's teacher."""
        return self._teacher(False)

    def with_heads(self) -> tuple[DetectorOutputs, DetectorOutputs]:
        """Run the dense heads of student and teacher on their features.

        Raises:
            ConfigError: if one fails.
        """
        try:
            with _evaluated(self.detector):
                student = outputs_on(self.detector, self.student.feats, with_head=True)
            return student, self._teacher(True)
        except RuntimeError as error:
            raise ConfigError(
                f'a head of student or teacher failed on a blank {SIZE}×{SIZE} image on the CPU '
                f'({error}); accepted where heads are compared: those that run on a CPU'
            ) from error

    @property
    def channels(self) -> tuple[int, ...]:
        """The channels of each of the student's feature levels; errors as in :attr:`student`."""
        return tuple(x.shape[1] for x in self.student.feats)

    @property
    def is_made(self) -> bool:
        """Whether the student's pass was asked for."""
        return self._student.cache_info().currsize > 0

    def _run_student(self) -> DetectorOutputs:
        name = f'({type(self.detector).__name__})'
        with _evaluated(self.detector):
            try:
                feats = self.detector.extract_feat(self.images)
            except Exception as error:
                raise ConfigError(
                    f'{name} cannot be distilled: its extract_feat failed on a blank {SIZE}×{SIZE} '
                    f'image on the CPU ({type(error).__name__}: {error}). If it runs on a GPU alone, '
                    'give SSSDDistiller the channels of its feature levels: model.teacher.in_channels '
                    'and model.adapter.in_channels, such as [256, 256, 256]',
                    'model.student',
                ) from error
            if not _is_pyramid(feats):
                raise ConfigError(
                    f'{name}: its extract_feat gives a {type(feats).__name__}; accepted: a tuple of '
                    'maps of shape (B, C, h, w), one per level',
                    'model.student',
                )
            return DetectorOutputs(feats)

    def _run_teacher(self, key: str, teacher: nn.Module, with_head: bool) -> DetectorOutputs:
        needs_head, teacher.needs_head = teacher.needs_head, with_head
        try:
            with within(key), _evaluated(self.detector), _evaluated(teacher):
                made = teacher.on_blank(self.detector, self.student, self.images, self.samples)
                if with_head and teacher.is_trained:
                    made = outputs_on(self.detector, made.feats, with_head)
                return made
        finally:
            teacher.needs_head = needs_head


@contextmanager
def _evaluated(module: nn.Module) -> Iterator[None]:
    """Let a module be in eval mode, without gradients."""
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(was_training)


def _is_pyramid(feats: Any) -> bool:
    """Tell whether this is a sequence of maps of shape (B, C, h, w), one or more."""
    is_sequence = isinstance(feats, Sequence) and len(feats) > 0
    return is_sequence and all(isinstance(x, Tensor) and x.ndim == 4 for x in feats)
