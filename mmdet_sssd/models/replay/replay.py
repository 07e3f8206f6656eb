from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from mmdet.models import BaseDetector
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.structures import DetDataSample
from mmengine.structures import BaseDataElement
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from ..outputs import DetectorOutputs
from ..weights_by_name import Weights
from .answers import Answers, kept_answers
from .head_gradients import weighed_gradients
from .head_record import HeadRecord
from .head_state import undone
from .heads import FEATURE_MODULES, head_modules


class Replay:
    """Lets a detector compute its loss or its predictions on given features.

    Inside the context ``detector.extract_feat`` returns them. Heads run as they are, so that one code
    path serves every detector.

    Args:
        detector: The detector.
        feats: One map of shape (B, C, h, w) per feature level.
        records_head: Whether to keep what its dense ``bbox_head`` makes of them.
        images: Indices of the images that the loss is computed on; it has to be given the data
            samples of these alone. What is recorded has all. None: all.
        leaves_trace: Whether what the heads' forward changes beside gradients stays: BN statistics,
            running counts, sampling histories, of the modules of the heads and of whatever they hold.
        by_batch: Whether batch norms of heads in eval mode normalise by the batch where they do in
            training: their running statistics are those of the student's features.
        keeps_answers: Whether ``outputs`` have what assigners and single levels of dense heads answer.
        answers: The context in which they answer as in an earlier pass; None: they work.
        head_grad: Weights of the gradients that the heads' parameters receive, by their names; see
            :func:`~mmdet_sssd.models.replay.weighed_gradients`.

    Example:
        >>> with Replay(student, feats, leaves_trace=False) as replay:
        ...     losses = student.loss(batch_inputs, fresh_samples(batch_data_samples))
        >>> replay.outputs.feats is feats
        True
    """

    def __init__(
        self,
        detector: BaseDetector,
        feats: Sequence[Tensor],
        *,
        records_head: bool = False,
        images: list[int] | None = None,
        leaves_trace: bool = True,
        by_batch: bool = False,
        keeps_answers: bool = False,
        answers: Callable[[], AbstractContextManager] | None = None,
        head_grad: Weights | None = None,
    ) -> None:
        self.detector = detector
        self.feats = feats
        self.images = images
        head = getattr(detector, 'bbox_head', None)
        records_head = records_head and isinstance(head, BaseDenseHead)
        self.record = HeadRecord(head, images) if records_head else None
        self.leaves_trace = leaves_trace
        self.by_batch = by_batch
        self.keeps_answers = keeps_answers
        self.given = answers
        self.head_grad = head_grad
        self.answers: Answers | None = None

    @torch.compiler.disable
    def __enter__(self) -> 'Replay':
        with ExitStack() as stack:
            stack.enter_context(_features(self.detector, self._rows()))
            if not self.leaves_trace:
                stack.enter_context(undone(head_modules(self.detector)))
            if self.by_batch:
                stack.enter_context(_batch_statistics(self.detector))
            if self.record is not None:
                stack.enter_context(self.record)
            if self.keeps_answers:
                self.answers = stack.enter_context(kept_answers(self.detector))
            if self.given is not None:
                stack.enter_context(self.given())
            if self.head_grad:
                stack.enter_context(weighed_gradients(self.detector, self.head_grad))
            self.exit = stack.pop_all()
        return self

    @torch.compiler.disable
    def __exit__(self, *error: Any) -> None:
        self.exit.__exit__(*error)

    @property
    def outputs(self) -> DetectorOutputs:
        """What the detector made of all images: its features and, recorded, its head's outputs."""
        if self.record is None:
            return DetectorOutputs(self.feats, answers=self.answers)
        return DetectorOutputs(
            self.feats,
            self.record.made,
            self.record.cls_scores,
            self.record.anchor_flags,
            answers=self.answers,
        )

    def _rows(self) -> Sequence[Tensor]:
        """Take the rows of ``images``, unless the head's record does so behind the head."""
        if self.images is None or self.record is not None:
            return self.feats
        return type(self.feats)(x[self.images] for x in self.feats)


class _GivenFeatures:
    """Stands in for ``extract_feat``. An object, not a function: compiled code stays valid for it."""

    def __init__(self, feats: Sequence[Tensor]) -> None:
        self.feats = feats

    def __call__(self, *_args: Any, **_kwargs: Any) -> Sequence[Tensor]:
        return type(self.feats)(self.feats)


@contextmanager
def _features(detector: BaseDetector, feats: Sequence[Tensor]) -> Iterator[None]:
    """Let ``detector.extract_feat`` return the given features."""
    shadowed = vars(detector).get('extract_feat')  # set only if somebody else replaced it
    detector.extract_feat = _GivenFeatures(feats)
    try:
        yield
    finally:
        del detector.extract_feat
        if shadowed is not None:
            detector.extract_feat = shadowed


@contextmanager
def _batch_statistics(detector: BaseDetector) -> Iterator[None]:
    """Let the heads' batch norms in eval mode normalise by the batch where they do so in training.

    No statistics are updated, and processes do not wait for each other. A map of a single value per
    channel is normalised by the running statistics after all.
    """
    norms = {
        module: (module.running_mean, module.running_var)
        for module in _normalised_by_the_batch(detector)
    }

    def hide(module: _BatchNorm, inputs: tuple[Tensor]) -> None:
        if inputs[0].numel() > inputs[0].shape[1]:
            module.running_mean = module.running_var = None

    def restore(module: _BatchNorm, *_: Any) -> None:
        module.running_mean, module.running_var = norms[module]

    handles = [module.register_forward_pre_hook(hide) for module in norms]
    handles += [module.register_forward_hook(restore, always_call=True) for module in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _normalised_by_the_batch(detector: BaseDetector) -> list[_BatchNorm]:
    """List the heads' batch norms that training puts into training mode, if they are not in it."""
    modules = head_modules(detector)
    modes = [module.training for module in modules]
    for name, child in detector.named_children():
        if name not in FEATURE_MODULES:
            child.train()
    found = [
        module
        for module, was_training in zip(modules, modes, strict=True)
        if isinstance(module, _BatchNorm) and module.training and not was_training
    ]
    for module, was_training in zip(modules, modes, strict=True):
        module.training = was_training
    return found


@torch.compiler.disable
def fresh_samples(batch_data_samples: Sequence[DetDataSample]) -> list[DetDataSample]:
    """Copy data samples as deep as heads change them: tensors are shared, their holders are not."""
    copies = [sample.clone() for sample in batch_data_samples]
    for sample in copies:
        for name, value in sample.items():
            if isinstance(value, BaseDataElement):
                setattr(sample, name, value.clone())
    return copies
