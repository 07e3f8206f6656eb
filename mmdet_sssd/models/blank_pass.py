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
from .outputs import DetectorOutputs, outputs_from_feats

SIZE = 320  # pixels a side; SSD needs more than 256


class BlankPass:
    """Outputs of a student and its teachers for a blank 320×320 image without objects, on the CPU.

    Parts of a distiller read channels and feature levels from them. Each pass runs when first needed,
    so a student that only runs on a GPU can be distilled if the config names the channels.

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
        self._student = cache(self._run_student)  # shared by copies

    def with_teacher(self, key: str, teacher: nn.Module) -> 'BlankPass':
        """Copy this pass for a term with this teacher; errors name the teacher by ``key``."""
        blank = copy(self)
        blank._teacher = cache(lambda with_head: self._run_teacher(key, teacher, with_head))
        return blank

    @property
    def student(self) -> DetectorOutputs:
        """The student's features.

        Raises:
            ConfigError: if ``extract_feat`` fails or does not return feature levels.
        """
        return self._student()

    @property
    def teacher(self) -> DetectorOutputs:
        """The features of a term's teacher."""
        return self._teacher(False)

    def with_heads(self) -> tuple[DetectorOutputs, DetectorOutputs]:
        """Run the dense heads of student and teacher on their features.

        Raises:
            ConfigError: if a head fails.
        """
        try:
            with _evaluated(self.detector):
                student = outputs_from_feats(self.detector, self.student.feats, with_head=True)
            return student, self._teacher(True)
        except RuntimeError as error:
            raise ConfigError(
                f'a head of student or teacher failed on a blank {SIZE}×{SIZE} image on the CPU '
                f'({error}); accepted where heads are compared: heads that run on a CPU'
            ) from error

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the student's feature levels; errors as in :attr:`student`."""
        return tuple(x.shape[1] for x in self.student.feats)

    @property
    def is_made(self) -> bool:
        """Whether the student's pass has run."""
        return self._student.cache_info().currsize > 0

    def _run_student(self) -> DetectorOutputs:
        name = f'({type(self.detector).__name__})'
        with _evaluated(self.detector):
            try:
                feats = self.detector.extract_feat(self.images)
            except Exception as error:
                raise ConfigError(
                    f'{name} cannot be distilled: its extract_feat failed on a blank {SIZE}×{SIZE} '
                    f'image on the CPU ({type(error).__name__}: {error}). If it only runs on a GPU, '
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
                    made = outputs_from_feats(self.detector, made.feats, with_head)
                return made
        finally:
            teacher.needs_head = needs_head


@contextmanager
def _evaluated(module: nn.Module) -> Iterator[None]:
    """Put a module in eval mode, without gradients."""
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(was_training)


def _is_pyramid(feats: Any) -> bool:
    """Tell whether ``feats`` is a sequence of one or more maps of shape (B, C, h, w)."""
    is_sequence = isinstance(feats, Sequence) and len(feats) > 0
    return is_sequence and all(isinstance(x, Tensor) and x.ndim == 4 for x in feats)
