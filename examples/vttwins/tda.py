"""Temporal data augmentation (TDA): near-by clips, or captions, that look alike trade places.

Requirements: torch.

A permutation s of the n elements of a sequence, |s(i) - i| <= reach, is drawn with probability
proportional to exp(-||S - S_s||_F / tau), where S is the self-similarity of the sequence and S_s
the same with rows and columns permuted: orders that keep the structure of the sequence are likely.

Source: Ko et al., CVPR 2022, Eq. (12); that tau = 1/50 enters here is inferred, not stated.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

REACH = 2
TAU = 0.02


@lru_cache(maxsize=64)
def near_permutations(n: int, reach: int = REACH) -> Tensor:
    """All permutations of range(n) that move no element further than ``reach``: int64 (P, n).

    Depth-first: position i takes any free element of [i - reach, i + reach], so the work is that of
    the permutations found, never n!. In lexicographic order; the identity is row 0.

    Example:
        >>> len(near_permutations(8))
        400
    """
    found: list[list[int]] = []
    taken = [False] * n

    def extend(prefix: list[int]) -> None:
        i = len(prefix)
        if i == n:
            found.append(prefix.copy())
            return
        # An element about to fall out of reach must be taken now, or the branch is dead.
        overdue = i - reach
        if overdue >= 0 and not taken[overdue]:
            candidates = range(overdue, overdue + 1)
        else:
            candidates = range(max(0, overdue), min(n, i + reach + 1))
        for element in candidates:
            if not taken[element]:
                taken[element] = True
                prefix.append(element)
                extend(prefix)
                prefix.pop()
                taken[element] = False

    extend([])
    return torch.tensor(found, dtype=torch.int64).reshape(len(found), n)


def permutation_log_probabilities(sequence: Tensor, reach: int = REACH, tau: float = TAU) -> Tensor:
    """Log-probabilities (*, P) of ``near_permutations`` for sequences (*, n, D); no gradient.

    Cost: P n^2 numbers a sequence; 400 x 64 for n = 8.
    """
    x = sequence.detach().double()
    similarity = x @ x.mT
    orders = near_permutations(sequence.shape[-2], reach).to(sequence.device)
    permuted = similarity[..., orders[:, :, None], orders[:, None, :]]  # (*, P, n, n)
    distance = (permuted - similarity[..., None, :, :]).square().sum((-2, -1)).sqrt()
    return torch.log_softmax(-distance / tau, dim=-1)


def draw_permutations(
    sequence: Tensor, uniform: Tensor, reach: int = REACH, tau: float = TAU
) -> Tensor:
    """Permutations (*, n) drawn for sequences (*, n, D), from uniform numbers (*) in [0, 1).

    The randomness comes in as numbers, so ranks that share them share the draw.
    """
    cumulative = permutation_log_probabilities(sequence, reach, tau).exp().cumsum(-1)
    u = uniform.to(cumulative).unsqueeze(-1) * cumulative[..., -1:]
    chosen = torch.searchsorted(cumulative, u, right=True).squeeze(-1)
    orders = near_permutations(sequence.shape[-2], reach).to(sequence.device)
    return orders[chosen.clamp(max=len(orders) - 1)]


def permute(sequence: Tensor, order: Tensor) -> Tensor:
    """Reorder sequences (*, n, D) by (*, n); the gradient flows through."""
    return sequence.gather(-2, order.unsqueeze(-1).expand(sequence.shape))
