from collections.abc import Sequence
from functools import partial

import torch
from mmdet.utils import reduce_mean
from torch import Tensor


class GradientTaps:
    """Measures the gradient that each user of shared feature levels sends into them.

    The levels pass one identity per user, one after the other::

        feats ──> identity ──> identity ──> identity
                     └> head      └> teacher   └> term

    The backward pass reaches the users in reverse order, with or without identities. The gradient at
    an identity is therefore the sum of its user's and all later users' gradients, and subtracting the
    next identity's sum leaves the user's own. Autograd forms these sums anyway, so all gradients stay
    the same to the bit; identities side by side would change them. A user's gradient is as exact as
    the sum it is taken from.

    Example:
        >>> taps, feats = GradientTaps(), (torch.ones(1, 1, 1, 1, requires_grad=True),)
        >>> head_feats = taps.tap('head', feats)
        >>> term_feats = taps.tap('term', head_feats)
        >>> (3 * head_feats[0] - 4 * term_feats[0]).sum().backward()
        >>> taps.norms('term', 'head')
        (4.0, 3.0)
    """

    def __init__(self) -> None:
        self.squares: dict[str, Tensor] = {}  # by user, one per level
        self.later: dict[int, Tensor] = {}  # the sum at the last identity, by level

    def clear(self) -> None:
        """Discard all measurements."""
        self.squares.clear()
        self.later.clear()

    def tap(self, user: str, feats: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the levels for their next user, with taps on their gradients.

        Args:
            user: The user's name. Calls with the same name add up.
            feats: Levels of shape (B, C_p, h_p, w_p), as returned by the previous call; the first
                user's are the original ones.
        """
        if user not in self.squares:
            dtype = torch.promote_types(feats[0].dtype, torch.float32)
            self.squares[user] = feats[0].new_zeros(len(feats), dtype=dtype)
        return type(feats)(self._tapped(user, level, x) for level, x in enumerate(feats))

    def _tapped(self, user: str, level: int, x: Tensor) -> Tensor:
        if x.requires_grad:
            x = x.view_as(x)
            x.register_hook(partial(self._take, user, level))
        return x

    def _take(self, user: str, level: int, gradient: Tensor) -> None:
        """Add the user's own part of the gradient at its identity."""
        squares = self.squares[user]
        own = gradient.to(squares.dtype)
        if level in self.later:
            own = own - self.later.pop(level)
        squares[level] += torch.linalg.vector_norm(own).square()
        if user != next(iter(self.squares)):
            self.later[level] = gradient

    def norms(self, user: str, other: str) -> tuple[float, float] | None:
        """Compute two users' gradient norms over the levels that the first user's gradient reaches.

        Squares are averaged over processes. Two numbers are read from the device.

        Args:
            user: The first user, which selects the levels.
            other: The second user.

        Returns:
            Both norms; None if one of the users was not tapped.
        """
        if not {user, other} <= self.squares.keys():
            return None
        squares = reduce_mean(torch.stack([self.squares[user], self.squares[other]]))
        reached = squares.where(squares[0] != 0, 0)
        return tuple(reached.sum(1).sqrt().tolist())
