import inspect
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn as nn
from mmdet.models import BaseDetector
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.structures.bbox import get_box_tensor
from mmdet.utils import ConfigType, OptConfigType, OptMultiConfig
from mmengine.logging import print_log
from torch import Tensor

from ...errors import ConfigError, check_settings
from ..config_class import class_of, is_config_of
from ..terms import DetectorOutputs, DistillTerm
from .pretrained_teacher import PretrainedTeacher
from .recorded_head import blank_outputs, recorded_head
from .replay import fresh_samples, replay_features, take_images
from .student import build_student, count_classes

OUR_PREFIXES = ('student.', 'teacher.', 'adapter.', 'terms.')


@MODELS.register_module()
class Distiller(BaseDetector):
    r"""Trains a detector, the student, to do as a pretrained detector does.

    .. math:: L = L_{det}(x) + \sum_i \lambda_i L_i

    with the student's own losses on its features x, and the distillation terms :math:`L_i`, each of
    which compares something of the student with that of the pretrained teacher: feature levels
    (``FeatureTerm``) or classification logits (``LogitTerm``). Inference is the student's alone.

    The log has the student's losses under their own names, and of each term ``loss_distill.NAME``,
    λ included, and ``distill_distance.NAME.p`` of each feature level p. The state dict is
    ``student.*`` and ``terms.NAME.*`` (adapters, where there are any); a stock detector's state dict
    loads into the student. The pretrained teacher is in neither the state dict nor the parameters.
    Attributes that this class lacks (``bbox_head``, ``with_rpn`` …) are the student's.

    Args:
        student: Config of any detector whose ``loss`` runs on what ``extract_feat`` returns.
        pretrained_teacher: Arguments of :class:`PretrainedTeacher`: ``config``, ``checkpoint`` …
        terms: Configs of the distillation terms by name, such as
            ``dict(ssim=dict(type='FeatureTerm', distill_loss=dict(type='SSIMLoss')))``.
        data_preprocessor: Only for runners that hand a top-level ``data_preprocessor`` to the model:
            it goes to a student that has none. Otherwise the student's is used.
        init_cfg: As in mmengine.
        **unknown: Refused with a sentence that says where the key belongs.

    Attributes:
        num_dropped_boxes: How many labelled boxes were left out because they cover less than a pixel
            of the image; stock losses are not finite on some of them.

    Raises:
        ConfigError: if an argument is not one of these, or the student is no detector that can be
            distilled; the message names the key.
    """

    needs_terms = True

    def __init__(
        self,
        student: ConfigType,
        pretrained_teacher: OptConfigType = None,
        terms: dict[str, ConfigType] | None = None,
        data_preprocessor: OptConfigType = None,
        init_cfg: OptMultiConfig = None,
        **unknown: Any,
    ) -> None:
        _check_none_unknown(unknown, type(self))
        built_student = build_student(student, data_preprocessor)
        super().__init__(data_preprocessor=built_student.data_preprocessor, init_cfg=init_cfg)
        self.student = built_student
        with own_random_numbers():
            self.pretrained_teacher = self._build_teacher(pretrained_teacher, terms)
            self.terms = self._build_terms(terms or {})
        self.num_dropped_boxes = 0

    def _build_teacher(
        self, config: OptConfigType, terms: dict[str, ConfigType] | None
    ) -> PretrainedTeacher | None:
        if terms and config is None:
            raise ConfigError(
                f'model.terms has {", ".join(terms)}, which compare with a pretrained teacher, but '
                'there is no model.pretrained_teacher=dict(config=…, checkpoint=…)'
            )
        if not terms and (self.needs_terms or config is not None):
            raise ConfigError(
                'model.terms is empty; give one, such as '
                "model.terms=dict(ssim=dict(type='FeatureTerm', distill_loss=dict(type='SSIMLoss')))"
            )
        if not terms:
            return None
        given = dict(student=self.student)
        check_settings('model.pretrained_teacher', PretrainedTeacher, config, given)
        return PretrainedTeacher(**given, **config)

    def _build_terms(self, configs: dict[str, ConfigType]) -> nn.ModuleDict:
        """Build the terms, which read what they need off both detectors' outputs for a blank image."""
        terms = nn.ModuleDict()
        if configs:
            blank = dict(
                student=blank_outputs(self.student, 'model.student'),
                teacher=blank_outputs(self.pretrained_teacher.detector, 'model.pretrained_teacher'),
            )
        for name, config in configs.items():
            key = f'model.terms.{name}'
            if not is_config_of(config, DistillTerm) or '.' in name:
                raise ConfigError(
                    f"{key} is {config!r}; accepted: a dict with type='FeatureTerm' or 'LogitTerm', "
                    'under a name without dots'
                )
            given = {**blank, 'key': key}
            check_settings(key, class_of(config), config, given)
            terms[name] = MODELS.build({**config, **given})
        return terms

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == 'student':  # not built yet
                raise
            return getattr(self.student, name)

    def init_weights(self) -> None:
        """Initialise the student, and load the pretrained teacher, before training."""
        super().init_weights()
        teacher = self.pretrained_teacher
        if teacher is not None and not teacher.in_checkpoint:  # else it may be about to come
            teacher.load_weights()

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Any]:
        """Compute the student's losses and those of the distillation.

        Args:
            batch_inputs: Images of shape (B, 3, H, W).
            batch_data_samples: Their B data samples with ground truth.

        Returns:
            The losses by name, and what is logged beside them.
        """
        student_samples = self._without_degenerate_boxes(batch_data_samples)
        samples = fresh_samples(student_samples)  # heads change theirs
        losses, outputs = self._student_losses(batch_inputs, student_samples)
        losses.update(self._distill_losses(outputs, batch_inputs, samples))
        return losses

    def predict(self, batch_inputs: Tensor, batch_data_samples: SampleList, **kwargs) -> SampleList:
        """Predict with the student alone; see its ``predict``."""
        return self.student.predict(batch_inputs, batch_data_samples, **kwargs)

    def _forward(self, batch_inputs: Tensor, batch_data_samples: Any = None) -> Any:
        return self.student._forward(batch_inputs, batch_data_samples)

    def extract_feat(self, batch_inputs: Tensor) -> Sequence[Tensor]:
        """Extract the student's features, one map of shape (B, C, h, w) per level."""
        return self.student.extract_feat(batch_inputs)

    def count_classes(self) -> int:
        """Read the number of classes off the student; errors as in :func:`.student.count_classes`."""
        return count_classes(self.student)

    def _student_losses(
        self, batch_inputs: Tensor, samples: SampleList, images: list[int] | None = None
    ) -> tuple[dict[str, Any], DetectorOutputs]:
        """Compute the student's own losses, and keep what was made on the way to them.

        Args:
            batch_inputs: Images of shape (B, 3, H, W).
            samples: Their B data samples; heads change them.
            images: Indices of the images that the losses are computed on. None: all.

        Returns:
            The losses, and what the student made of all B images.
        """
        feats = self.student.extract_feat(batch_inputs)
        rows = images
        if images is not None:
            starts = range(0, len(feats[0]), len(samples))  # 3 of them in TridentNet's training
            rows = [start + i for start in starts for i in images]
            batch_inputs, samples = batch_inputs[images], [samples[i] for i in images]
        if not self._compares_logits():
            with replay_features(self.student, take_images(feats, rows)):
                return self.student.loss(batch_inputs, samples), DetectorOutputs(feats)
        head = self.student.bbox_head
        with replay_features(self.student, feats), recorded_head(head, images) as record:
            losses = self.student.loss(batch_inputs, samples)
        return losses, DetectorOutputs(feats, record.cls_scores, record.anchor_flags())

    def _distill_losses(
        self, student: DetectorOutputs, batch_inputs: Tensor, samples: SampleList
    ) -> dict[str, Any]:
        """Compute the losses of the distillation.

        Args:
            student: What the student made of the images.
            batch_inputs: The images of shape (B, 3, H, W).
            samples: Their B data samples, untouched by heads.
        """
        if not self.terms:
            return {}
        teacher = self.pretrained_teacher(batch_inputs, samples, self._compares_logits())
        return self._term_losses(student, teacher, batch_inputs, samples)

    def _term_losses(
        self,
        student: DetectorOutputs,
        teacher: DetectorOutputs,
        batch_inputs: Tensor,
        samples: SampleList,
    ) -> dict[str, Tensor]:
        losses = {}
        for name, term in self.terms.items():
            for key, value in term(student, teacher, batch_inputs, samples).items():
                kind, *level = key.split('.')
                losses['.'.join([kind, name, *level])] = value
        return losses

    def _compares_logits(self) -> bool:
        return any(term.compares_logits for term in self.terms.values())

    def _without_degenerate_boxes(self, batch_data_samples: SampleList) -> SampleList:
        """Leave out the labelled objects whose box covers less than a pixel of its image.

        One answer is read from the device for the whole batch, before anything of the step is
        queued there.
        """
        boxes = [get_box_tensor(sample.gt_instances.bboxes) for sample in batch_data_samples]
        kept = [
            covers_a_pixel(x, sample.get('img_shape', None))
            for x, sample in zip(boxes, batch_data_samples, strict=True)
        ]
        flags = torch.cat(kept).cpu()
        if flags.all():
            return batch_data_samples
        samples = fresh_samples(batch_data_samples)
        for sample, keep in zip(samples, kept, strict=True):
            sample.gt_instances = sample.gt_instances[keep]
        self._count_dropped_boxes(int((~flags).sum()), len(flags), samples)
        return samples

    def _count_dropped_boxes(self, num_dropped: int, num_boxes: int, samples: SampleList) -> None:
        """Count the boxes that are left out, and say so the first time."""
        if not self.num_dropped_boxes:
            images = [s.metainfo['img_path'] for s in samples if s.metainfo.get('img_path')]
            print_log(
                f'{num_dropped} of the {num_boxes} labelled boxes of a batch cover less than a pixel '
                'of their image after the training pipeline; such boxes are left out of training '
                f'and this is said once. The images of the batch: {", ".join(images) or "unnamed"}.',
                logger='current',
                level=logging.WARNING,
            )
        self.num_dropped_boxes += num_dropped

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.pretrained_teacher is not None:
            self.pretrained_teacher.save_to(destination, prefix)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        """Take a stock detector's state dict as the student's.

        Raises:
            ConfigError: if it has weights of a distiller and of a stock detector, or is a stock
                detector's of which nothing fits the student.
        """
        if self.pretrained_teacher is not None:
            self.pretrained_teacher.load_from(state_dict, prefix)
        own = {f'{prefix}student.{key}' for key in self.student.state_dict()}
        stock = {key for key in state_dict if f'{prefix}student.{key[len(prefix) :]}' in own}
        ours = [key for key in state_dict if key.startswith(OUR_PREFIXES, len(prefix))]
        if stock and ours:
            raise ConfigError(
                f'a checkpoint has weights of a distiller ({ours[0]}) and of a stock detector '
                f'({min(stock)}); remove those of one of them'
            )
        if state_dict and not (stock or ours):
            raise ConfigError(
                f'none of the {len(state_dict)} weights of a checkpoint is one of model.student, a '
                f'{type(self.student).__name__}: it has {min(state_dict)}, model.student has '
                f'{min(self.student.state_dict())}. Weights of a backbone alone are set by '
                'model.student.backbone.init_cfg=dict(type="Pretrained", checkpoint=…)'
            )
        if not ours:
            for key in [key for key in state_dict if key.startswith(prefix)]:
                state_dict[f'{prefix}student.{key[len(prefix) :]}'] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)


def is_distiller(model: ConfigType) -> bool:
    """Tell by a model's config whether it is a distiller; ``type`` may be a name or a class."""
    return is_config_of(model, Distiller)


@contextmanager
def own_random_numbers() -> Iterator[None]:
    """Draw from a stream of its own, so that the student is initialised as it would be alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(torch.initial_seed() + 1)
        yield


def _check_none_unknown(unknown: dict[str, Any], distiller: type) -> None:
    if unknown:
        accepted = [x for x in inspect.signature(distiller).parameters if x != 'unknown']
        raise ConfigError(
            f'model.{next(iter(unknown))} is no setting of {distiller.__name__}; if it is one of the '
            f"detector's, write model.student.{next(iter(unknown))}. Accepted: {', '.join(accepted)}"
        )


def covers_a_pixel(boxes: Tensor, img_shape: tuple[int, int] | None) -> Tensor:
    """Tell which boxes of shape (n, 4) have a width and height of a pixel or more in the image."""
    height, width = img_shape or (math.inf, math.inf)
    x1, y1 = boxes[:, 0].clamp(min=0), boxes[:, 1].clamp(min=0)
    x2, y2 = boxes[:, 2].clamp(max=width), boxes[:, 3].clamp(max=height)
    return (x2 - x1 >= 1) & (y2 - y1 >= 1)
