from typing import Any

from mmdet.models import MultiBranchDataPreprocessor
from mmdet.models.utils import rename_loss_dict, reweight_loss_dict
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.utils import ConfigType, OptConfigType, OptMultiConfig
from mmengine.model import BaseDataPreprocessor
from mmengine.structures import InstanceData
from torch import Tensor

from ...datasets.branches import BRANCHES, LABELLED, UNLABELLED
from ...errors import ConfigError
from ..terms import DetectorOutputs
from .distiller import Distiller, covers_a_pixel
from .replay import fresh_samples
from .student import count_classes, of_one_branch


@MODELS.register_module()
class SemiDistiller(Distiller):
    """Trains a detector to do as a pretrained one does, on images without labels too.

    Source: semi-supervised SAD (https://arxiv.org/abs/1901.00366). Training batches have the branches
    ``sup`` and ``unsup``, as ``MultiBranch(branch_field=['sup', 'unsup'], …)`` at the end of the
    pipelines makes them; either may be empty. On labelled images this is a :class:`Distiller`. On the
    others

    - the teacher's detections of enough confidence, on the image as the student sees it, become
      ground truth for the student's own losses; an image without any has no such loss,
    - the terms compare student and teacher on every image.

    Both detectors see each image once. Losses of unlabelled images have the prefix ``unsup.`` in the
    log and weigh as much as the others; ``unsup.pseudo_boxes`` is the number of these boxes per image.

    Args:
        student: As in :class:`Distiller`; it learns boxes, no masks.
        pretrained_teacher: As in :class:`Distiller`, of a detector of the same classes.
        terms: As in :class:`Distiller`.
        pseudo_score_thr: Least score of a detection that becomes ground truth, in [0, 1]. Defaults
            to 0.4.
        data_preprocessor: As in :class:`Distiller`. One for multi-branch batches is made around the
            student's; where a config has one already, what is in it is the student's.
        init_cfg: As in mmengine.
        **unknown: Refused with a sentence that says where the key belongs.

    Raises:
        ConfigError: if an argument is not one of these, or the student is no detector that can be
            distilled; the message names the key.
    """

    def __init__(
        self,
        student: ConfigType,
        pretrained_teacher: OptConfigType = None,
        terms: dict[str, ConfigType] | None = None,
        pseudo_score_thr: float = 0.4,
        data_preprocessor: OptConfigType = None,
        init_cfg: OptMultiConfig = None,
        **unknown: Any,
    ) -> None:
        if not isinstance(pseudo_score_thr, (int, float)) or not 0 <= pseudo_score_thr <= 1:
            raise ConfigError(
                f'model.pseudo_score_thr is {pseudo_score_thr!r}; accepted: a score, 0 to 1'
            )
        if isinstance(student, dict) and student.get('data_preprocessor'):
            own = of_one_branch(student['data_preprocessor'])
            student = {**student, 'data_preprocessor': own}
        data_preprocessor = of_one_branch(data_preprocessor)
        super().__init__(student, pretrained_teacher, terms, data_preprocessor, init_cfg, **unknown)
        self._check_pseudo_labels_fit()
        self.data_preprocessor = BranchDataPreprocessor(self.student.data_preprocessor)
        self.pseudo_score_thr = pseudo_score_thr

    def _check_pseudo_labels_fit(self) -> None:
        """Make sure that what the teacher predicts is what the student learns."""
        if self.student.with_mask:
            raise ConfigError(
                f'model.student is a {type(self.student).__name__}, which learns masks; SemiDistiller '
                'makes boxes alone of unlabelled images. Accepted: a detector without mask head'
            )
        own, teachers = self.count_classes(), count_classes(self.pretrained_teacher.detector)
        if own != teachers:
            raise ConfigError(
                f'model.pretrained_teacher has {teachers} classes, model.student {own}; its '
                'detections are to become ground truth, so they have to be the same, in the same order'
            )

    def loss(
        self, batch_inputs: dict[str, Tensor], batch_data_samples: dict[str, SampleList]
    ) -> dict[str, Any]:
        """Compute the losses of the branches that the batch has.

        Args:
            batch_inputs: Images of shape (B, 3, H, W) by branch, ``sup`` and ``unsup``; B, H and W
                may differ.
            batch_data_samples: Their B data samples by branch; of ``sup`` with ground truth.

        Returns:
            The losses by name, and what is logged beside them.
        """
        losses: dict[str, Any] = {}
        if LABELLED in batch_inputs:
            losses.update(super().loss(batch_inputs[LABELLED], batch_data_samples[LABELLED]))
        if UNLABELLED in batch_inputs:
            unlabelled = self._unlabelled_loss(
                batch_inputs[UNLABELLED], batch_data_samples[UNLABELLED]
            )
            losses.update(rename_loss_dict(f'{UNLABELLED}.', unlabelled))
        return losses

    def _unlabelled_loss(self, batch_inputs: Tensor, samples: SampleList) -> dict[str, Any]:
        teacher, samples = self._label(batch_inputs, samples)
        counts = [len(sample.gt_instances) for sample in samples]
        images = [i for i, count in enumerate(counts) if count]
        # Without any box the losses are computed all the same, and weigh nothing: every parameter
        # has a gradient, and heads that average over processes find the others.
        losses, student = self._student_losses(batch_inputs, fresh_samples(samples), images or None)
        if not images:
            losses = reweight_loss_dict(losses, 0)
        losses.update(self._term_losses(student, teacher, batch_inputs, samples))
        losses['pseudo_boxes'] = batch_inputs.new_tensor(counts).mean()
        return losses

    def _label(
        self, batch_inputs: Tensor, samples: SampleList
    ) -> tuple[DetectorOutputs, SampleList]:
        """Run the teacher, and make data samples with its confident detections as ground truth."""
        teacher, predictions = self.pretrained_teacher.predict(
            batch_inputs, samples, self._compares_logits()
        )
        samples = [sample.clone() for sample in samples]
        for sample, found in zip(samples, predictions, strict=True):
            found = found[found.scores >= self.pseudo_score_thr]
            found = found[covers_a_pixel(found.bboxes, sample.get('img_shape', None))]
            sample.gt_instances = InstanceData(bboxes=found.bboxes, labels=found.labels)
            if 'ignored_instances' in sample:  # they are labels too
                sample.ignored_instances = sample.ignored_instances[:0]
        return teacher, samples


class BranchDataPreprocessor(MultiBranchDataPreprocessor):
    """mmdet's for multi-branch batches, for batches that lack a branch too.

    Args:
        data_preprocessor: The one that each branch goes through; outside training, everything.
    """

    def __init__(self, data_preprocessor: BaseDataPreprocessor) -> None:
        BaseDataPreprocessor.__init__(self)  # its own builds one from a config
        self.data_preprocessor = data_preprocessor

    def forward(self, data: dict, training: bool = False) -> dict:
        """Prepare a batch.

        Args:
            data: ``inputs`` and ``data_samples``; in training, each by branch, with None for the
                images of other branches.
            training: Whether this is training.

        Raises:
            ConfigError: if a training batch has no branches, or others than ``sup`` and ``unsup``.
        """
        if training:
            data = {key: _filled(branches) for key, branches in data.items()}
        return super().forward(data, training)


def _filled(branches: dict[str, list]) -> dict[str, list]:
    """Keep the branches of a batch that have an image."""
    if not isinstance(branches, dict) or not set(branches) <= set(BRANCHES):
        found = ', '.join(branches) if isinstance(branches, dict) else 'none'
        raise ConfigError(
            f'a training batch has the branches: {found}; SemiDistiller takes {" and ".join(BRANCHES)}.'
            " End the pipeline of labelled images with dict(type='MultiBranch', "
            "branch_field=['sup', 'unsup'], sup=dict(type='PackDetInputs')), that of the others with "
            "unsup=dict(type='PackDetInputs') instead"
        )
    filled = {name: [x for x in items if x is not None] for name, items in branches.items()}
    return {name: items for name, items in filled.items() if items}
