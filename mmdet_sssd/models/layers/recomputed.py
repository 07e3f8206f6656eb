from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def recomputed(enabled: bool, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function; if enabled, recompute it in the backward pass instead of keeping activations.

    (Not reentrant, which would break DDP.)
    """
    if not (enabled and torch.is_grad_enabled()):
        return function(*args)
    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)
