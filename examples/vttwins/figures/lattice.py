"""The whole lattice of an alignment, dummies included, for pictures.

Requirements: torch, softdtw_kernels.

``softdtw_kernels.s2dtw_alignment`` tells how often pairs are visited. Pictures also show the
dummies, so the lattice is written out here: soft-DTW of it is S2DTW (Ko et al., CVPR 2022,
Section 3), which the tests check.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from examples.vttwins.loss import SequenceLoss
from softdtw_kernels import cost_matrix, soft_dtw_alignment_from_cost

ALIGNING = ("s2dtw", "weak", "smoothed", "soft_dtw")  # MIL-NCE has no path


@dataclass(frozen=True)
class Lattice:
    """An alignment of m captions with n clips on its lattice, (2m+1) x (2n+1) with dummies.

    Attributes:
        cosine: (m, n), of each caption and clip.
        visits: expected visits of each cell of the lattice.
        path: (L, 2), the cells of the cheapest path, ends included.
        value: what the operator gives for the pair.
        entropy: of the distribution of paths in nats; log(number of paths) if all are alike.
        dummies: whether pairs lie at odd places only, between dummies.
    """

    cosine: Tensor
    visits: Tensor
    path: Tensor
    value: float
    entropy: float
    dummies: bool

    @property
    def pairs(self) -> Tensor:
        """Expected visits of the pairs (m, n)."""
        return self.visits[1::2, 1::2] if self.dummies else self.visits

    @property
    def dummy_visits(self) -> float:
        """Expected number of dummies on a path."""
        return (self.visits.sum() - self.pairs.sum()).item() if self.dummies else 0.0

    def place(self, index: Tensor) -> Tensor:
        """Where a row or column of the lattice lies, pairs at 0, 1, ..., dummies between them."""
        return (index.double() - 1) / 2 if self.dummies else index.double()


def smooth(cost: Tensor, gamma: float, origin_count: int = 1) -> Tensor:
    """Costs (m, n) plus the soft minimum of their raw predecessors inside the matrix."""
    padded = torch.nn.functional.pad(cost, (1, 0, 1, 0), value=torch.inf)
    before = torch.stack((padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1]))
    least = before.amin(0) if gamma == 0 else -gamma * torch.logsumexp(-before / gamma, 0)
    # The origin has no predecessor: the soft minimum of ``origin_count`` zeros stands there.
    least[0, 0] = -gamma * math.log(origin_count)
    return cost + least


def with_dummies(cost: Tensor, dummy_cost: float) -> Tensor:
    """The lattice (2m+1, 2n+1): costs (m, n) at odd places, dummies everywhere else."""
    m, n = cost.shape
    lattice = torch.full((2 * m + 1, 2 * n + 1), dummy_cost, dtype=cost.dtype)
    lattice[1::2, 1::2] = cost
    return lattice


def align(text: Tensor, video: Tensor, loss: SequenceLoss, gamma: float | None = None) -> Lattice:
    """The alignment of captions (m, D) with clips (n, D) that a loss computes.

    Args:
        gamma: another one than the loss's.
    """
    if loss.operator not in ALIGNING:
        raise ValueError(f"{loss.operator} aligns nothing; one of {', '.join(ALIGNING)} does")
    gamma = loss.gamma if gamma is None else gamma
    text, video = text.detach().double().cpu(), video.detach().double().cpu()
    cost = cost_matrix(text, video, cost=loss.cost)
    if loss.smoothing:
        cost = smooth(cost, gamma, loss.origin_count)
    dummies = loss.dummy_cost is not None
    if loss.dummy_cost is not None:
        cost = with_dummies(cost, loss.dummy_cost)
    alignment = soft_dtw_alignment_from_cost(cost, gamma=gamma)
    path = alignment.path()
    assert isinstance(path, Tensor)  # of one pair
    cosine = -cost_matrix(text, video, cost="shifted_cosine")
    visits, value = alignment.expected, alignment.value.item()
    # H = (E[cost] - value) / gamma for the Gibbs distribution exp(-cost / gamma) / Z.
    entropy = (float((visits * cost).sum()) - value) / gamma if gamma > 0 else 0.0
    return Lattice(cosine, visits, path, value, entropy, dummies)
