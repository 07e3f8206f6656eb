from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def recomputed(enabled: bool, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function, and if that is enabled call it again in the backward pass.

    What it computes is then not kept in between. (Not reentrant: that would break DDP.)
    """
    if not (enabled and torch.is_grad_enabled()):
        return function(*args)
    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)
