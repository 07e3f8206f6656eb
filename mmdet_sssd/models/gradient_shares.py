from collections.abc import Sequence
from functools import partial

import torch
from mmdet.utils import reduce_mean
from torch import Tensor


class GradientShares:
    """Measures the gradient that each of several users of the same feature levels sends into them.

    The levels pass an identity on their way to each user, one after the other::

        feats ──> identity ──> identity ──> identity
                     └> head      └> teacher   └> term

    The backward pass comes to the users in the opposite order, with or without identities. So what
    arrives at an identity is the sum of its user's gradient and the later ones', and an identity's sum
    less the next one's is its user's own. The sums are those that autograd forms anyway: all gradients
    stay the same to the bit, which they would not if the identities stood side by side. A gradient is
    known as exactly as the sum that it is taken from.

    Example:
        >>> shares, feats = GradientShares(), (torch.ones(1, 1, 1, 1, requires_grad=True),)
        >>> head_feats = shares.lend('head', feats)
        >>> term_feats = shares.lend('term', head_feats)
        >>> (3 * head_feats[0] - 4 * term_feats[0]).sum().backward()
        >>> shares.norms('term', 'head')
        (4.0, 3.0)
    """

    def __init__(self) -> None:
        self.squares: dict[str, Tensor] = {}  # of each user, one per level
        self.later: dict[int, Tensor] = {}  # what arrived last, by level

    def clear(self) -> None:
        """Forget what was measured."""
        self.squares.clear()
        self.later.clear()

    def lend(self, user: str, feats: Sequence[Tensor]) -> Sequence[Tensor]:
        """Give the levels to their next user.

        Args:
            user: Its name. What is sent into several pyramids under one name adds up.
            feats: The levels, of shape (B, C_p, h_p, w_p); for every user but the first, those that
                the one before was given.
        """
        if user not in self.squares:
            dtype = torch.promote_types(feats[0].dtype, torch.float32)
            self.squares[user] = feats[0].new_zeros(len(feats), dtype=dtype)
        return type(feats)(self._watched(user, level, x) for level, x in enumerate(feats))

    def _watched(self, user: str, level: int, x: Tensor) -> Tensor:
        if x.requires_grad:
            x = x.view_as(x)
            x.register_hook(partial(self._take, user, level))
        return x

    def _take(self, user: str, level: int, gradient: Tensor) -> None:
        """Add the user's own part of what arrived at its identity."""
        squares = self.squares[user]
        own = gradient.to(squares.dtype)
        if level in self.later:
            own = own - self.later.pop(level)
        squares[level] += torch.linalg.vector_norm(own).square()
        if user != next(iter(self.squares)):
            self.later[level] = gradient

    def norms(self, user: str, other: str) -> tuple[float, float] | None:
        """Give the norms of two users' gradients on the levels that the first one's reaches.

        On several processes the squares are averaged. Two numbers are read from the device.

        Args:
            user: The user that the levels are taken from.
            other: The one it is compared with.

        Returns:
            Both norms; None if one of them was lent nothing.
        """
        if not {user, other} <= self.squares.keys():
            return None
        squares = reduce_mean(torch.stack([self.squares[user], self.squares[other]]))
        reached = squares.where(squares[0] != 0, 0)
        return tuple(reached.sum(1).sqrt().tolist())
