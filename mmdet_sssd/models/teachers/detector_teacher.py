import torch
from mmdet.models import BaseDetector
from mmdet.structures import SampleList
from mmengine.structures import InstanceData
from torch import Tensor

from ..outputs import DetectorOutputs, outputs_from_feats
from ..replay import Replay, fresh_samples
from .teacher import Teacher


class DetectorTeacher(Teacher):
    """A detector that sees the student's images, in eval mode and without gradient.

    Args:
        detector: The detector.
    """

    def __init__(self, detector: BaseDetector) -> None:
        super().__init__()
        self.detector = detector.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> 'DetectorTeacher':
        """Stay in eval mode."""
        return super().train(False)

    def init_weights(self) -> None:
        """Keep the detector's weights."""

    @torch.no_grad()
    def forward(
        self,
        student: BaseDetector,
        outputs: DetectorOutputs,
        batch_inputs: Tensor,
        batch_data_samples: SampleList,
    ) -> DetectorOutputs:
        """Run the detector on the student's images; see the base class."""
        images = self.prepare(batch_inputs, batch_data_samples)
        return outputs_from_feats(
            self.detector, self.detector.extract_feat(images), self.needs_head
        )

    @torch.no_grad()
    def predict(
        self, batch_inputs: Tensor, batch_data_samples: SampleList
    ) -> tuple[DetectorOutputs, list[InstanceData]]:
        """Compute the detector's outputs and predictions in one run.

        Under AMP the head runs in full precision, for NMS and exact boxes.

        Args:
            batch_inputs: As for :meth:`forward`.
            batch_data_samples: As for :meth:`forward`; labels are not used.

        Returns:
            The outputs, and predictions for the B images in pixels of ``batch_inputs``.
        """
        images = self.prepare(batch_inputs, batch_data_samples)
        feats = tuple(x.to(images.dtype) for x in self.detector.extract_feat(images))
        replay = Replay(self.detector, feats, records_head=self.needs_head)
        with replay, torch.autocast(images.device.type, enabled=False):
            found = self.detector.predict(images, fresh_samples(batch_data_samples), rescale=False)
        return replay.outputs, [sample.pred_instances for sample in found]

    def prepare(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> Tensor:
        """Convert the student's images of shape (B, 3, H, W) for the detector."""
        return batch_inputs
