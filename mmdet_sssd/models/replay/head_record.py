"""Records a dense head's outputs and which anchors its loss counts."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn as nn
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from torch import Tensor

from ...errors import ConfigError
from ..outputs import extract_cls_scores, map_tensors


class HeadRecord:
    """Records a dense head's single run inside the context.

    Args:
        head: The head.
        images: Indices of the images whose outputs the head's loss receives. None: all.

    Attributes:
        made: Return value of its forward.
        cls_scores: Its logits of shape (B, h, w, A, K) per level; None if they cannot be compared.
    """

    def __init__(self, head: BaseDenseHead, images: list[int] | None) -> None:
        self.head = head
        self.images = images
        self.made: Sequence[Any] = ()
        self.cls_scores: list[Tensor] | None = None
        self.num_logits: list[int] = []  # in each call of the classification loss
        self.weights: list[Tensor | None] = []

    def __enter__(self) -> 'HeadRecord':
        self.handles = [self.head.register_forward_hook(self._take_outputs)]
        if isinstance(getattr(self.head, 'loss_cls', None), nn.Module):
            hook = self.head.loss_cls.register_forward_pre_hook
            self.handles.append(hook(self._take_weights, with_kwargs=True))
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self.handles:
            handle.remove()

    def anchor_flags(self) -> list[Tensor] | None:
        """Tell which anchors the classification loss counted.

        Ignored anchors have weight 0. With a weight per class (FSAF), an anchor counts if one of its
        classes does. Anchors of images that the loss did not receive count.

        Returns:
            Booleans of shape (B, h, w, A) per level; None if the loss has no weights and counts all,
            does not use ``loss_cls`` (AutoAssign, FreeAnchor, TOOD's first epochs), or the logits
            cannot be compared.

        Raises:
            ConfigError: if the loss covers only some anchors, or its weights are not per level.
        """
        if self.cls_scores is None:
            return None
        counted = self._of_images(self.cls_scores)
        sizes = [x.numel() for x in counted]
        weights = [weight for weight in self.weights if weight is not None]
        if not weights and sum(self.num_logits) in (0, sum(sizes)):
            return None
        if len(weights) != len(sizes) or self.num_logits != sizes:
            raise ConfigError(
                f'the anchors that a {type(self.head).__name__} ignores cannot be told '
                "from its classification loss, so type='LogitTerm' does not take it; accepted: heads "
                "such as RetinaNet's, ATSS's, GFL's or FCOS's, or type='FeatureTerm'"
            )
        flags = [x.new_ones(x.shape[:-1], dtype=torch.bool) for x in self.cls_scores]
        images = slice(None) if self.images is None else self.images
        for level, logits, weight in zip(flags, counted, weights, strict=True):
            level[images] = (weight > 0).reshape(*logits.shape[:-1], -1).any(-1)
        return flags

    def _of_images(self, made: Any) -> Any:
        return made if self.images is None else map_tensors(lambda x: x[self.images], made)

    def _take_outputs(self, _head: nn.Module, _args: Any, made: Sequence[Any]) -> Sequence[Any]:
        self.made = made
        self.cls_scores = extract_cls_scores(self.head, made)
        return self._of_images(made)

    def _take_weights(self, _loss: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.num_logits.append(args[0].numel())
        self.weights.append(kwargs.get('weight', args[2] if len(args) > 2 else None))
