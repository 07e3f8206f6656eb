import torch
from mmdet.models import BaseDetector
from mmdet.structures import SampleList
from mmengine.structures import InstanceData
from torch import Tensor

from ..outputs import DetectorOutputs, outputs_on
from ..replay import Replay, fresh_samples
from .teacher import Teacher


class DetectorTeacher(Teacher):
    """A detector that sees what the student sees, and gets no gradient.

    It stays in eval mode.

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
        """Leave the detector's weights as they are."""

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
        return outputs_on(self.detector, self.detector.extract_feat(images), self.needs_head)

    @torch.no_grad()
    def predict(
        self, batch_inputs: Tensor, batch_data_samples: SampleList
    ) -> tuple[DetectorOutputs, list[InstanceData]]:
        """Run the detector once for its outputs and its predictions.

        Under AMP its head runs in full precision: NMS needs it, and boxes are worth it.

        Args:
            batch_inputs: As for :meth:`forward`.
            batch_data_samples: As for :meth:`forward`; labels are not looked at.

        Returns:
            Its outputs, and the predictions of the B images, in pixels of ``batch_inputs``.
        """
        images = self.prepare(batch_inputs, batch_data_samples)
        feats = tuple(x.to(images.dtype) for x in self.detector.extract_feat(images))
        replay = Replay(self.detector, feats, records_head=self.needs_head)
        with replay, torch.autocast(images.device.type, enabled=False):
            found = self.detector.predict(images, fresh_samples(batch_data_samples), rescale=False)
        return replay.outputs, [sample.pred_instances for sample in found]

    def prepare(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> Tensor:
        """Make the detector's images, (B, 3, H, W), of the student's."""
        return batch_inputs
