"""Finds the modules and parameters of a detector's heads, which replay runs."""

from collections.abc import Iterator

from mmdet.models import BaseDetector
from torch import nn

FEATURE_MODULES = ('backbone', 'neck', 'data_preprocessor')  # not run in a replay


def head_modules(detector: BaseDetector) -> list[nn.Module]:
    """List a detector's modules outside feature extraction, outer ones first."""
    heads = [child for name, child in detector.named_children() if name not in FEATURE_MODULES]
    return [module for head in heads for module in head.modules()]


def head_parameters(detector: BaseDetector) -> Iterator[tuple[str, nn.Module, str]]:
    """Yield a detector's parameters outside feature extraction.

    Yields:
        The parameter's name in the detector, the module that holds it, and its name there; a shared
        parameter once per module.
    """
    for path, module in detector.named_modules():
        if path.partition('.')[0] not in FEATURE_MODULES:
            for key, parameter in module._parameters.items():
                if parameter is not None:
                    yield f'{path}.{key}'.removeprefix('.'), module, key
