"""What the operators `pattern_*` find of the pairs of a call: values, gradients, and how sure."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .batch import Batch, Gradients
from .solve import in_tiers


class Results(NamedTuple):
    values: np.ndarray  # (P,) float64
    status: np.ndarray  # see `scaling`
    scale: np.ndarray | None  # gradients are of scale times the values; None if none are due
    with_settings: bool
    grad: np.ndarray  # (A, B, N, M), 0 before
    sums: np.ndarray  # (3, P), 0 before: gradients by gamma, warp and skip

    def by_tiers(self, task: Batch) -> Gradients | None:
        """All that the kernels of plain lattices certify."""
        out, gradients = np.empty(task.pairs, task.cost.dtype), None
        if self.scale is not None:
            gradients = Gradients(self.scale.astype(out.dtype), self.with_settings, self.grad)
        in_tiers(task, gradients, out, self.status)
        self.values[:] = out
        if gradients is not None and self.with_settings:
            self.sums[0] = gradients.gamma
        return gradients

    def clear(self, items: np.ndarray) -> None:
        """For those that write where mass flows."""
        if self.scale is not None:
            self.grad[np.divmod(items, self.grad.shape[1])] = 0.0


def spread(results: Results, task: Batch, items: np.ndarray, number: float) -> None:
    """One number as all gradients of some pairs."""
    if results.scale is None or items.size == 0:
        return
    n, m = task.lengths
    for q in items:
        results.grad[divmod(q, results.grad.shape[1])][: n[q], : m[q]] = number
        results.sums[:, q] = number
    task.clear_beyond_band(results.grad, results.values)
