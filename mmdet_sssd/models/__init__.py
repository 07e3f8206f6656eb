from .adapters import ChannelAdapter, FeatureAdapter
from .backbone_teacher import BackboneTeacher
from .distiller import Distiller
from .label_encoder_teacher import LabelEncoderTeacher
from .logit_term import LogitTerm
from .losses import AdaptiveDistillLoss, CosineLoss, JSDistanceLoss, NormedMSELoss, SSIMLoss
from .pretrained_teacher import DetectorTeacher, PretrainedTeacher
from .replay import DetectorOutputs
from .semi_distiller import SemiDistiller
from .sssd_distiller import SSSDDistiller
from .student import probe, probe_pair
from .teachers import ImplicitTeacher, Teacher
from .terms import DistillTerm, FeatureTerm

__all__ = [
    'AdaptiveDistillLoss',
    'BackboneTeacher',
    'ChannelAdapter',
    'CosineLoss',
    'DetectorOutputs',
    'DetectorTeacher',
    'DistillTerm',
    'Distiller',
    'FeatureAdapter',
    'FeatureTerm',
    'ImplicitTeacher',
    'JSDistanceLoss',
    'LabelEncoderTeacher',
    'LogitTerm',
    'NormedMSELoss',
    'PretrainedTeacher',
    'SSIMLoss',
    'SSSDDistiller',
    'SemiDistiller',
    'Teacher',
    'probe',
    'probe_pair',
]
