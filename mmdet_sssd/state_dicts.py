"""What state dicts of distillers and detectors hold."""

from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor

PREFIX = 'student.'


def student_weights(state_dict: Mapping[str, Tensor]) -> OrderedDict:
    """Extract the student's part of a distiller's state dict, with its modules' versions.

    Without the versions, heads would rename weights as in an older state dict.

    Returns:
        The weights under their names in the student; empty without a student.
    """
    weights = _without_prefix(state_dict)
    weights._metadata = _without_prefix(getattr(state_dict, '_metadata', {}))
    return weights


def _without_prefix(items: Mapping) -> OrderedDict:
    """Keep the entries of the student and its parts, under their names in the student."""
    dotted = ((f'{key}.', value) for key, value in items.items())
    return OrderedDict(
        (key[len(PREFIX) : -1], value) for key, value in dotted if key.startswith(PREFIX)
    )


def misfit(own: Mapping[str, Tensor], loaded: Mapping[str, Tensor]) -> str:
    """Describe the first weight of a model that a checkpoint lacks, or has in another shape."""
    for key, weight in own.items():
        key = key.removeprefix('module.')
        if key.endswith('num_batches_tracked'):  # old checkpoints have none
            continue
        found = loaded.get(key)
        if found is None:
            return f'{key}, of shape {tuple(weight.shape)}, is missing in it'
        if found.shape != weight.shape:
            return f'{key}, of shape {tuple(weight.shape)}, is of shape {tuple(found.shape)} in it'
    return ''
