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
from .head_gradients import weighed_gradients
from .head_record import HeadRecord
from .head_state import undone
from .heads import FEATURE_MODULES, head_modules
from .reused_results import Results, record_results


class Replay:
    """Lets a detector compute its loss or its predictions on given features.

    Inside the context ``detector.extract_feat`` returns these features. Heads run unchanged, so one
    code path serves every detector.

    Args:
        detector: The detector.
        feats: One map of shape (B, C, h, w) per feature level.
        records_head: Whether to record the outputs of its dense ``bbox_head``.
        images: Indices of the images that the loss uses; pass it only their data samples. Recorded
            outputs cover all images. None: all.
        leaves_trace: Whether the heads keep the pass's changes besides gradients: BN statistics,
            running counts, sampling histories, in the heads' modules and the objects they hold.
        by_batch: Whether heads' batch norms in eval mode normalise by the batch where they would in
            training: their running statistics belong to the student's features.
        records_results: Whether ``outputs`` include the results of assigners and of dense heads'
            single levels.
        reuse: Makes a context that reuses results of an earlier pass, see :func:`reuse_results`. None:
            everything is computed.
        head_grad: Weights of the gradients sent into the heads' parameters, by name; see
            :func:`~mmdet_sssd.models.replay.head_gradients.weighed_gradients`.

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
        records_results: bool = False,
        reuse: Callable[[], AbstractContextManager] | None = None,
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
        self.records_results = records_results
        self.reuse = reuse
        self.head_grad = head_grad
        self.results: Results | None = None

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
            if self.records_results:
                self.results = stack.enter_context(record_results(self.detector))
            if self.reuse is not None:
                stack.enter_context(self.reuse())
            if self.head_grad:
                stack.enter_context(weighed_gradients(self.detector, self.head_grad))
            self.exit = stack.pop_all()
        return self

    @torch.compiler.disable
    def __exit__(self, *error: Any) -> None:
        self.exit.__exit__(*error)

    @property
    def outputs(self) -> DetectorOutputs:
        """The features and everything recorded, for all images."""
        if self.record is None:
            return DetectorOutputs(self.feats, results=self.results)
        return DetectorOutputs(
            self.feats,
            self.record.made,
            self.record.cls_scores,
            self.record.anchor_flags,
            results=self.results,
        )

    def _rows(self) -> Sequence[Tensor]:
        """Select the features of ``images``, unless the head's record selects its outputs."""
        if self.images is None or self.record is not None:
            return self.feats
        return type(self.feats)(x[self.images] for x in self.feats)


class _GivenFeatures:
    """Replaces ``extract_feat``; compiled code stays valid for an object, not for a new function."""

    def __init__(self, feats: Sequence[Tensor]) -> None:
        self.feats = feats

    def __call__(self, *_args: Any, **_kwargs: Any) -> Sequence[Tensor]:
        return type(self.feats)(self.feats)


@contextmanager
def _features(detector: BaseDetector, feats: Sequence[Tensor]) -> Iterator[None]:
    """Let ``detector.extract_feat`` return the given features."""
    shadowed = vars(detector).get('extract_feat')  # only set if other code replaced it
    detector.extract_feat = _GivenFeatures(feats)
    try:
        yield
    finally:
        del detector.extract_feat
        if shadowed is not None:
            detector.extract_feat = shadowed


@contextmanager
def _batch_statistics(detector: BaseDetector) -> Iterator[None]:
    """Let the heads' batch norms in eval mode normalise by the batch where they would in training.

    Statistics are not updated or synchronised. Maps with a single value per channel still use the
    running statistics.
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
    """List the heads' batch norms that are in eval mode but would be in training mode in training."""
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
    """Copy data samples as deeply as heads change them: containers are copied, tensors shared."""
    copies = [sample.clone() for sample in batch_data_samples]
    for sample in copies:
        for name, value in sample.items():
            if isinstance(value, BaseDataElement):
                setattr(sample, name, value.clone())
    return copies
