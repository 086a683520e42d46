"""Monotonic alignments in plain torch, one frame after the other: the oracle of the CPU kernels,
and what runs where there are none, on CUDA.

Requirements: torch only; any device with float64. Everything is computed in float64. `value` is an
ordinary differentiable torch function; the others have the signatures of the operators. Time is
that of some dozen torch calls a frame, memory that of all they make.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from ._problem import Monotonic
from ._reference import nan_of_items, per_item_lengths, softmin
from ._values import check_gamma_and_lengths, lengths_in_range


def value(monotonic: Monotonic) -> Tensor:
    """R[n, m] of R[t, j] = softmin(R[t-1, j-1], R[t-1, j]) - log_probs[t, j] at gamma = 1; NaN
    where a length is out of range.
    """
    x = monotonic.log_probs
    one = torch.ones((), dtype=torch.float64, device=x.device)
    n, m, visited = _cells(monotonic)
    # A probability of +inf is none.
    costs = torch.where(x == math.inf, math.nan, 0.0) - x.double()
    poison = nan_of_items(costs, visited)
    rows = torch.where(visited, costs, math.inf).unbind(-2)
    nothing = torch.full_like(rows[0], math.inf)
    is_end = torch.arange(x.shape[-1], device=x.device) == m[..., 0] - 1
    result, current = nothing[..., 0], nothing
    for t, row in enumerate(rows):
        before = pad(current[..., :-1], (1, 0), value=math.inf if t else 0.0)
        current = row + softmin(torch.stack((before, current)), one)
        end = torch.where(is_end, current, 0).sum(-1)
        result = torch.where(n[..., 0, 0] == t + 1, end, result)
    # No alignment: a constant. A NaN at the root makes every derivative of the item NaN.
    result = torch.where(result == math.inf, math.inf, result)
    result = (result + poison) * torch.where(poison.isnan(), math.nan, 1.0)
    return torch.where(_in_range(monotonic), result, math.nan).to(x.dtype)


def _cells(monotonic: Monotonic) -> tuple[Tensor, Tensor, Tensor]:
    """The lengths (*, 1, 1), and which cells an alignment may visit: those with as many frames
    before them as tokens, and after them.
    """
    x, x_lengths, y_lengths = monotonic
    one = torch.ones((), dtype=torch.float64)
    check_gamma_and_lengths(one, x_lengths, y_lengths, *x.shape[-2:])
    n, m = per_item_lengths(x_lengths, x.shape[-2], x), per_item_lengths(y_lengths, x.shape[-1], x)
    t = torch.arange(x.shape[-2], device=x.device)[:, None]
    j = torch.arange(x.shape[-1], device=x.device)
    return n, m, (t < n) & (j < m) & (j <= t) & (m - j <= n - t)


def _in_range(monotonic: Monotonic) -> Tensor:
    x, x_lengths, y_lengths = monotonic
    in_range = lengths_in_range(x_lengths, x.shape[-2]) & lengths_in_range(y_lengths, x.shape[-1])
    return in_range.to(x.device)


def monotonic_sum(monotonic: Monotonic, with_expected: bool) -> tuple[Tensor, Tensor]:
    x = monotonic.log_probs
    if not with_expected:
        return value(monotonic), x.new_empty(*x.shape[:-2], 0, 0)
    result, pull, *_ = torch.func.vjp(lambda x: value(monotonic._replace(log_probs=x)), x)
    return result, pull(-torch.ones_like(result))[0]


def monotonic_product(monotonic: Monotonic, tangent: Tensor) -> Tensor:
    """The derivative of the expected visits along a tangent, which counts where there are any."""

    def along(x: Tensor) -> Tensor:
        _, expected = monotonic_sum(monotonic._replace(log_probs=x), True)
        return (expected * torch.where(expected == 0, 0, tangent)).double().sum((-2, -1))

    result, pull, *_ = torch.func.vjp(along, monotonic.log_probs)
    product: Tensor = pull(torch.ones_like(result))[0]
    return product


def monotonic_path(monotonic: Monotonic) -> Tensor:
    """1 at the cells of the alignment of the largest sum, 0 elsewhere."""
    n, m, visited = _cells(monotonic)
    x = monotonic.log_probs.detach().double()
    scores = torch.where(visited, x, -math.inf)
    sums = torch.full_like(scores[..., 0, :], -math.inf)
    end, choices = sums[..., :1], []
    for t, row in enumerate(scores.unbind(-2)):
        before = pad(sums[..., :-1], (1, 0), value=-math.inf if t else 0.0)
        choices.append(before >= sums)
        sums = row + torch.maximum(before, sums)
        last = sums.gather(-1, (m[..., 0] - 1).clamp(0, x.shape[-1] - 1).expand(end.shape))
        end = torch.where(n[..., 0] == t + 1, last, end)
    possible = (end > -math.inf) & ~(visited & x.isnan()).any(-1).any(-1, keepdim=True)
    possible = possible & _in_range(monotonic)[..., None]
    token, rows = (m[..., 0] - 1).expand(end.shape), []
    j = torch.arange(x.shape[-1], device=x.device)
    for t in range(x.shape[-2] - 1, -1, -1):
        counts = possible & (t < n[..., 0])
        rows.append((j == token) & counts)
        back = choices[t].gather(-1, token.clamp(0, x.shape[-1] - 1)) & counts & (token > 0)
        token = token - back.long()
    return torch.stack(rows[::-1], dim=-2).to(monotonic.log_probs.dtype)
