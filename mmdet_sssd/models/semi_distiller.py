import copy
from typing import Any

import torch
from mmdet.models import MultiBranchDataPreprocessor, RTMDetInsHead
from mmdet.models.utils import rename_loss_dict, reweight_loss_dict
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.utils import ConfigType, OptConfigType, OptMultiConfig
from mmengine.dist import all_reduce, get_world_size
from mmengine.model import BaseDataPreprocessor
from mmengine.structures import InstanceData
from torch import Tensor

from ..datasets.branches import BRANCHES, LABELLED, UNLABELLED
from ..errors import ConfigError, check, is_number
from .distiller import Distiller, add_losses, covers_a_pixel
from .pretrained_teacher import PretrainedTeacher
from .replay import DetectorOutputs
from .student import count_classes, single_branch_preprocessor


@MODELS.register_module()
class SemiDistiller(Distiller):
    """Trains a detector with a pretrained teacher on labelled and unlabelled images.

    Source: semi-supervised SAD (https://arxiv.org/abs/1901.00366). Training batches have the branches
    ``sup`` and ``unsup``, as :class:`~mmdet_sssd.datasets.PartlyLabelledDataset` makes them; either may
    be empty. Labelled images train as in :class:`Distiller`. On
    unlabelled images

    - the teacher's confident detections, on the image as the student sees it, become ground truth
      for the student's own losses; images without any have no such loss,
    - the terms compare student and teacher on every image.

    Both detectors see each image once. Losses of unlabelled images have the prefix ``unsup.`` in the
    log and weigh as much as the labelled ones; ``unsup.pseudo_boxes`` is the mean number of pseudo
    boxes per image. On several processes, one that lacks a branch takes part in the others' averages
    with images of weight 0. Once the teacher has stopped, unlabelled images are left out.

    Args:
        student: As in :class:`Distiller`, without a mask head.
        teachers: As in :class:`Distiller`: one ``PretrainedTeacher`` with the student's classes.
        terms: As in :class:`Distiller`; there may be none.
        pseudo_score_thr: Lowest score of a detection that becomes ground truth, in [0, 1]. Defaults
            to 0.4.
        data_preprocessor: As in :class:`Distiller`; a multi-branch one is unwrapped first. The
            student's is then wrapped for multi-branch batches.
        init_cfg: As in mmengine.

    Raises:
        ConfigError: if the student cannot be distilled, the teacher cannot label images for it, or a
            part refuses its settings; the message names the key.
    """

    def __init__(
        self,
        student: ConfigType,
        teachers: dict[str, ConfigType] | None = None,
        terms: dict[str, ConfigType] | None = None,
        pseudo_score_thr: float = 0.4,
        data_preprocessor: OptConfigType = None,
        init_cfg: OptMultiConfig = None,
    ) -> None:
        key = 'model.pseudo_score_thr'
        check(key, pseudo_score_thr, is_number(pseudo_score_thr, most=1), 'a score, 0 to 1')
        if isinstance(student, dict) and student.get('data_preprocessor'):
            own = single_branch_preprocessor(student['data_preprocessor'])
            student = {**student, 'data_preprocessor': own}
        data_preprocessor = single_branch_preprocessor(data_preprocessor)
        super().__init__(student, teachers, terms, data_preprocessor, init_cfg)
        self._check_pseudo_labels_fit()
        self.data_preprocessor = BranchDataPreprocessor(self.student.data_preprocessor)
        self.pseudo_score_thr = pseudo_score_thr

    def _check_pseudo_labels_fit(self) -> None:
        """Refuse a teacher whose predictions cannot be the student's labels."""
        kinds = [type(teacher).__name__ for teacher in self.teachers.values()]
        if len(kinds) != 1 or not isinstance(self._teacher, PretrainedTeacher):
            raise ConfigError(
                f'has {", ".join(kinds)}; accepted by SemiDistiller: one PretrainedTeacher',
                'model.teachers',
            )
        head = getattr(self.student, 'bbox_head', None)
        is_panoptic = hasattr(self.student, 'panoptic_head')
        if self.student.with_mask or is_panoptic or isinstance(head, RTMDetInsHead):
            raise ConfigError(
                f'is a {type(self.student).__name__}, which learns masks; SemiDistiller only labels '
                'boxes. Accepted: a detector without a mask head',
                'model.student',
            )
        own, teachers = count_classes(self.student), count_classes(self._teacher.detector)
        if own != teachers:
            raise ConfigError(
                f'has {teachers} classes, model.student {own}; its detections become ground truth, so '
                'both need the same classes in the same order',
                f'model.teachers.{self._name}',
            )

    def _check_teachers_are_used(self) -> None:
        """Accept a teacher without terms: it labels images."""

    def _teacher_passes(self, *args: Any) -> tuple[dict[str, Any], dict[str, DetectorOutputs]]:
        """Run the teacher on labelled images if a term compares it; see the base class."""
        return super()._teacher_passes(*args) if self.terms else ({}, {})

    @property
    def _name(self) -> str:
        return next(iter(self.teachers))

    @property
    def _teacher(self) -> PretrainedTeacher:
        return self.teachers[self._name]

    def loss(
        self, batch_inputs: dict[str, Tensor], batch_data_samples: dict[str, SampleList]
    ) -> dict[str, Any]:
        """Compute the losses of the branches in the batch.

        Args:
            batch_inputs: Images of shape (B, 3, H, W) by branch, ``sup`` and ``unsup``; B, H and W
                may differ.
            batch_data_samples: Their B data samples by branch; those of ``sup`` have ground truth.

        Returns:
            The losses and other logged values by name.
        """
        losses: dict[str, Any] = {}
        branches = self._branches_anywhere(batch_inputs) if self._teacher.active else [LABELLED]
        for branch in branches:
            is_here = branch in batch_inputs
            source = branch if is_here else next(iter(batch_inputs))
            compute = super().loss if branch == LABELLED else self._unlabelled_loss
            if not is_here:
                compute = self._zero_loss
            own = compute(batch_inputs[source], batch_data_samples[source])
            losses.update(own if branch == LABELLED else rename_loss_dict(f'{UNLABELLED}.', own))
        return losses

    def _branches_anywhere(self, batch_inputs: dict[str, Tensor]) -> list[str]:
        """List the branches that any process has.

        Heads average over processes, so every process computes the losses of all these branches.
        """
        if get_world_size() == 1:
            return [branch for branch in BRANCHES if branch in batch_inputs]
        device = next(iter(batch_inputs.values())).device
        counts = torch.tensor([int(x in batch_inputs) for x in BRANCHES], device=device)
        all_reduce(counts, op='max')
        return [x for x, count in zip(BRANCHES, counts.tolist(), strict=True) if count]

    def _zero_loss(self, batch_inputs: Tensor, samples: SampleList) -> dict[str, Any]:
        """Compute the losses of a branch that only other processes have, with weight 0."""
        samples = _without_labels(samples)
        losses, student, results = self._student_pass(batch_inputs, samples)
        _, teacher_outputs = self._teacher_passes(student, results, batch_inputs, samples)
        if student.cls_scores is not None:
            none = [torch.zeros_like(x[..., 0], dtype=torch.bool) for x in student.cls_scores]
            student.anchor_flags = lambda: none
        losses.update(self._term_losses(student, teacher_outputs, batch_inputs, samples))
        return {k: x for k, x in reweight_loss_dict(losses, 0).items() if 'loss' in k}

    def _unlabelled_loss(self, batch_inputs: Tensor, samples: SampleList) -> dict[str, Any]:
        teacher, samples = self._label(batch_inputs, samples)
        counts = [len(sample.gt_instances) for sample in samples]
        images = [i for i, count in enumerate(counts) if count]
        # Without any box the losses are still computed, with weight 0: every parameter gets a
        # gradient, and heads that average over processes do not wait for this one.
        losses, student, _ = self._student_pass(batch_inputs, samples, images or None)
        if not images:
            losses = reweight_loss_dict(losses, 0)
        term_losses = self._term_losses(student, {self._name: teacher}, batch_inputs, samples)
        add_losses(losses, term_losses, 'terms', self.terms)
        losses['pseudo_boxes'] = batch_inputs.new_tensor(counts).mean()
        return losses

    def _label(
        self, batch_inputs: Tensor, samples: SampleList
    ) -> tuple[DetectorOutputs, SampleList]:
        """Run the teacher, and make its confident detections the ground truth of data samples."""
        teacher, predictions = self._teacher.predict(batch_inputs, samples)
        samples = _without_labels(samples)
        for sample, found in zip(samples, predictions, strict=True):
            found = found[found.scores >= self.pseudo_score_thr]
            found = found[found.bboxes.isfinite().all(-1)]  # such as a size that overflowed
            found = found[covers_a_pixel(found.bboxes, sample.get('img_shape', None))]
            sample.gt_instances = InstanceData(bboxes=found.bboxes, labels=found.labels)
        return teacher, samples


def _without_labels(samples: SampleList) -> SampleList:
    """Copy data samples without their objects, ignored ones included."""
    samples = [sample.clone() for sample in samples]
    for sample in samples:
        for name in {'gt_instances', 'ignored_instances'} & set(sample.keys()):
            setattr(sample, name, getattr(sample, name)[:0])
    return samples


class BranchDataPreprocessor(MultiBranchDataPreprocessor):
    """mmdet's multi-branch data preprocessor, also for batches that lack a branch.

    Args:
        data_preprocessor: Preprocessor of each branch and, outside training, of whole batches.
    """

    def __init__(self, data_preprocessor: BaseDataPreprocessor) -> None:
        BaseDataPreprocessor.__init__(self)  # the parent's builds one from a config
        self.data_preprocessor = data_preprocessor

    def forward(self, data: dict, training: bool = False) -> dict:
        """Prepare a batch.

        Args:
            data: ``inputs`` and ``data_samples``; in training, each by branch, with None for images
                of other branches.
            training: Whether the model trains.

        Raises:
            ConfigError: if a training batch has no branches, or one besides ``sup`` and ``unsup``.
        """
        if not training:
            return super().forward(data)
        data = {key: _filled(branches) for key, branches in data.items()}
        stand_in = None
        if len(data['inputs']) < len(BRANCHES) and get_world_size() > 1:
            stand_in = {k: copy.deepcopy(next(iter(x.values()))) for k, x in data.items()}
        prepared = super().forward(data, training)
        if stand_in:  # others may have the branch, with batch augmentations that wait for this one
            self.data_preprocessor(stand_in, training)
        return prepared


def _filled(branches: dict[str, list]) -> dict[str, list]:
    """Drop the None entries and the branches without images."""
    if not isinstance(branches, dict) or not set(branches) <= set(BRANCHES):
        found = ', '.join(branches) if isinstance(branches, dict) else 'none'
        raise ConfigError(
            f'a training batch has the branches: {found}; SemiDistiller takes {" and ".join(BRANCHES)}.'
            ' Let mmdet_sssd.datasets.with_unlabelled make train_dataloader.dataset'
        )
    filled = {name: [x for x in items if x is not None] for name, items in branches.items()}
    return {name: items for name, items in filled.items() if items}
