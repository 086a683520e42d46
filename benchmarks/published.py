"""The operators beside soft-DTW as their papers have them: written from the papers, in the
structure of the published programs (one item after the other), for `benchmarks.operators`.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

# Forward-sum by CTC ---------------------------------------------------------------------------


def ctc_forward_sum(
    log_probs: Tensor,
    x_lengths: Tensor,
    y_lengths: Tensor,
    blank: float = -1.0,
    normalize: bool = True,
) -> Tensor:
    """Shih et al. 2021 and Badlani et al. 2022: (batch, frames, tokens) with a blank put in front,
    and CTC of the targets 1, 2, .., M.
    """
    padded = functional.pad(log_probs, (1, 0), value=blank)
    losses = []
    for item, n, m in zip(padded, x_lengths.tolist(), y_lengths.tolist(), strict=True):
        logits = item[:n, : m + 1]
        if normalize:
            logits = logits.log_softmax(-1)
        targets = torch.arange(1, m + 1)[None]
        lengths = torch.tensor([n]), torch.tensor([m])
        losses.append(functional.ctc_loss(logits[:, None], targets, *lengths, reduction="none")[0])
    return torch.stack(losses)


# DILATE ---------------------------------------------------------------------------------------


@numba.njit
def _weights(a: float, b: float, c: float, gamma: float) -> tuple[float, np.ndarray]:
    """The soft minimum and its gradient."""
    low = min(a, b, c)
    p = np.exp(-(np.array([a, b, c]) - low) / gamma)
    total = p.sum()
    return low - gamma * np.log(total), p / total


@numba.njit
def soft_dtw_matrix(cost: np.ndarray, gamma: float) -> np.ndarray:
    n, m = cost.shape
    r = np.full((n + 2, m + 2), 1e8)
    r[0, 0] = 0.0
    for j in range(1, m + 1):
        for i in range(1, n + 1):
            a, b, c = -r[i - 1, j - 1] / gamma, -r[i - 1, j] / gamma, -r[i, j - 1] / gamma
            top = max(a, b, c)
            total = np.exp(a - top) + np.exp(b - top) + np.exp(c - top)
            r[i, j] = cost[i - 1, j - 1] - gamma * (np.log(total) + top)
    return r


@numba.njit
def soft_dtw_gradient(cost: np.ndarray, r: np.ndarray, gamma: float) -> np.ndarray:
    n, m = cost.shape
    d = np.zeros((n + 2, m + 2))
    d[1 : n + 1, 1 : m + 1] = cost
    e = np.zeros((n + 2, m + 2))
    e[-1, -1] = 1.0
    r[:, -1] = r[-1, :] = -1e8
    r[-1, -1] = r[-2, -2]
    for j in range(m, 0, -1):
        for i in range(n, 0, -1):
            a = np.exp((r[i + 1, j] - r[i, j] - d[i + 1, j]) / gamma)
            b = np.exp((r[i, j + 1] - r[i, j] - d[i, j + 1]) / gamma)
            c = np.exp((r[i + 1, j + 1] - r[i, j] - d[i + 1, j + 1]) / gamma)
            e[i, j] = e[i + 1, j] * a + e[i, j + 1] * b + e[i + 1, j + 1] * c
    return e[1 : n + 1, 1 : m + 1]


@numba.njit
def alignment_of(cost: np.ndarray, gamma: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mensch and Blondel 2018, Algorithm 1: the weights of every cell, and E."""
    n, m = cost.shape
    v = np.full((n + 1, m + 1), 1e10)
    v[0, 0] = 0.0
    q, e = np.zeros((n + 2, m + 2, 3)), np.zeros((n + 2, m + 2))
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            low, q[i, j] = _weights(v[i, j - 1], v[i - 1, j - 1], v[i - 1, j], gamma)
            v[i, j] = cost[i - 1, j - 1] + low
    q[n + 1, m + 1, 1] = 1.0
    e[n + 1, m + 1] = 1.0
    for i in range(n, 0, -1):
        for j in range(m, 0, -1):
            e[i, j] = (
                q[i, j + 1, 0] * e[i, j + 1]
                + q[i + 1, j + 1, 1] * e[i + 1, j + 1]
                + q[i + 1, j, 2] * e[i + 1, j]
            )
    return e[1 : n + 1, 1 : m + 1].copy(), q, e


@numba.njit
def hessian_product(z: np.ndarray, q: np.ndarray, e: np.ndarray, gamma: float) -> np.ndarray:
    """Mensch and Blondel 2018, Algorithm 2, along z."""
    n, m = z.shape
    v, qd = np.zeros((n + 1, m + 1)), np.zeros((n + 2, m + 2, 3))
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            before = np.array([v[i, j - 1], v[i - 1, j - 1], v[i - 1, j]])
            mean = (q[i, j] * before).sum()
            v[i, j] = z[i - 1, j - 1] + mean
            qd[i, j] = -q[i, j] * (before - mean) / gamma
    ed = np.zeros((n + 2, m + 2))
    for j in range(m, 0, -1):
        for i in range(n, 0, -1):
            ed[i, j] = (
                qd[i, j + 1, 0] * e[i, j + 1]
                + q[i, j + 1, 0] * ed[i, j + 1]
                + qd[i + 1, j + 1, 1] * e[i + 1, j + 1]
                + q[i + 1, j + 1, 1] * ed[i + 1, j + 1]
                + qd[i + 1, j, 2] * e[i + 1, j]
                + q[i + 1, j, 2] * ed[i + 1, j]
            )
    return ed[1 : n + 1, 1 : m + 1]


class _Shape(Function):
    @staticmethod
    def forward(ctx: Any, costs: Tensor, gamma: float) -> Tensor:
        arrays = costs.detach().numpy()
        ctx.r = [soft_dtw_matrix(cost, gamma) for cost in arrays]
        ctx.costs, ctx.gamma = arrays, gamma
        return torch.tensor([r[-2, -2] for r in ctx.r], dtype=costs.dtype).mean()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        pairs = zip(ctx.costs, ctx.r, strict=True)
        e = np.stack([soft_dtw_gradient(cost, r, ctx.gamma) for cost, r in pairs])
        return grad * torch.from_numpy(e) / len(e), None


class _Path(Function):
    """The mean of the expected alignments."""

    @staticmethod
    def forward(ctx: Any, costs: Tensor, gamma: float) -> Tensor:
        found = [alignment_of(cost, gamma) for cost in costs.detach().numpy()]
        ctx.found, ctx.gamma = found, gamma
        return torch.from_numpy(np.mean([e for e, _, _ in found], axis=0))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        z = grad.numpy()
        products = [hessian_product(z, q, e, ctx.gamma) for _, q, e in ctx.found]
        return torch.from_numpy(np.stack(products)) / len(products), None


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    norms = x.square().sum(1)[:, None] + y.square().sum(1)[None]
    return (norms - 2 * x @ y.T).clamp(min=0.0)


def dilate(x: Tensor, y: Tensor, alpha: float, gamma: float) -> Tensor:
    """Le Guen and Thome 2019, of (batch, N, 1) in float64: costs of one item after the other."""
    costs = torch.stack([squared_distances(a, b) for a, b in zip(x, y, strict=True)])
    n = x.shape[1]
    steps = torch.arange(1, n + 1, dtype=x.dtype)[:, None]
    omega = squared_distances(steps, steps)
    temporal = (_Path.apply(costs, gamma) * omega).sum() / (n * n)
    loss: Tensor = alpha * _Shape.apply(costs, gamma) + (1 - alpha) * temporal
    return loss
