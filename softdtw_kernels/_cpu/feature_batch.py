"""One batch of sequences, as the kernels from features take it, and the place of its gradients."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .._lattice import band_limits
from . import sources, tiles

Wanted = tuple[bool, bool, bool]  # which gradients: by x, y, gamma


@dataclass
class FeatureBatch:
    """Sequences and what goes with them, as in `batch.Batch`."""

    x: np.ndarray  # (S, N, D), contiguous: those that differ
    x_of: np.ndarray  # (P,) int64: the sequence of each pair
    y: np.ndarray
    y_of: np.ndarray
    distance: bool  # or the negative product
    gamma: np.ndarray
    n: np.ndarray
    m: np.ndarray
    bandwidth: int

    @property
    def pairs(self) -> int:
        return self.x_of.size

    @property
    def cells(self) -> int:
        """About the number of all."""
        rows, columns = self.x.shape[1], self.y.shape[1]
        if self.bandwidth >= 0:
            low, high = band_limits(rows, columns, self.bandwidth)
            columns = min(columns, high - low + 1)
        return self.pairs * rows * columns

    @property
    def packed_sizes(self) -> tuple[int, int, int]:
        lanes = tiles.WIDTH // self.x.itemsize
        shape = self.x.shape[1], self.y.shape[1], self.x.shape[2]
        nx, ny, size = sources.sizes_of.py_func(*shape, lanes)
        return nx, ny, size

    def lattice(self, q: int) -> tuple[int, int, int]:
        """Of a pair the rows, the columns, and how many columns of a row are in the band."""
        rows, columns = (
            int(own[q]) if own.size else a.shape[1]
            for own, a in ((self.n, self.x), (self.m, self.y))
        )
        if self.bandwidth < 0:
            return rows, columns, columns
        low, high = band_limits(rows, columns, self.bandwidth)
        return rows, columns, high - low

    def part(self, items: np.ndarray) -> FeatureBatch:
        """Some of the pairs."""
        gamma = self.gamma[items] if self.gamma.size > 1 else self.gamma
        n, m = (a[items] if a.size else a for a in (self.n, self.m))
        x, x_of = _used(self.x, self.x_of[items])
        y, y_of = _used(self.y, self.y_of[items])
        return replace(self, x=x, x_of=x_of, y=y, y_of=y_of, gamma=gamma, n=n, m=m)


def _used(x: np.ndarray, x_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sequences that some pairs have."""
    which, of_pair = np.unique(x_of, return_inverse=True)
    return x[which], of_pair.reshape(-1).astype(np.int64)


@dataclass
class FeatureGradients:
    """Where the gradients of `scale` times the values go."""

    scale: np.ndarray  # (P,) in the dtype of the features
    x: np.ndarray  # (P, N, D), zeros before; or without a pair, if not wanted
    y: np.ndarray
    with_gamma: bool
    gamma: np.ndarray  # (P,) float64; zeros, if not wanted

    @classmethod
    def room(cls, task: FeatureBatch, scale: np.ndarray, wanted: Wanted) -> FeatureGradients:
        x, y = (
            np.zeros((task.pairs * is_wanted, *a.shape[1:]), a.dtype)
            for a, is_wanted in zip((task.x, task.y), wanted, strict=False)
        )
        return cls(scale, x, y, wanted[2], np.zeros(task.pairs))

    def put(self, items: np.ndarray, part: FeatureGradients) -> None:
        if len(self.x):
            self.x[items] = part.x
        if len(self.y):
            self.y[items] = part.y
        if self.with_gamma:
            self.gamma[items] = part.gamma

    def like(self, items: np.ndarray, dtype: np.dtype) -> FeatureGradients:
        """Room for those of some pairs."""
        x, y = (
            np.zeros((items.size * (len(a) > 0), *a.shape[1:]), dtype) for a in (self.x, self.y)
        )
        scale = self.scale[items].astype(dtype)
        return FeatureGradients(scale, x, y, self.with_gamma, np.zeros(items.size))


def spread_nan(task: FeatureBatch, gradients: FeatureGradients, items: np.ndarray) -> None:
    for q in items:
        n, m = (a[q] if a.size else None for a in (task.n, task.m))
        if len(gradients.x):
            gradients.x[q, :n] = np.nan
        if len(gradients.y):
            gradients.y[q, :m] = np.nan
        if gradients.with_gamma:
            gradients.gamma[q] = np.nan
