from .distill_term import DistillTerm
from .feature_term import FeatureTerm
from .logit_term import LogitTerm

__all__ = ['DistillTerm', 'FeatureTerm', 'LogitTerm']
