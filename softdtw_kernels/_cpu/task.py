"""Problems as the kernels take them, the values of gamma and of the lengths checked: here, where
reading them costs nothing.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from .._problem import Problem, Smoothing
from .._values import LARGEST_GAMMA, finite_error, gamma_error
from .arrays import flat, matrices, one_or_all
from .batch import ALL, Batch


def checked_gamma(gamma: Tensor) -> np.ndarray:
    values = one_or_all(gamma)
    if values.size == 1 and 0 <= values[0] <= LARGEST_GAMMA:
        return values
    right = (values >= 0) & (values <= LARGEST_GAMMA)
    if not right.all():
        raise gamma_error(values[~right][0])
    return values


def checked_price(price: Tensor, name: str) -> np.ndarray:
    values = one_or_all(price)
    finite = np.isfinite(values)
    if not finite.all():
        raise finite_error(values[~finite][0], name)
    return values


def checked_lengths(lengths: Tensor | None, size: int, name: str) -> np.ndarray:
    if lengths is None:
        return ALL
    values = flat(lengths)
    if values.size and not 1 <= values.min() <= values.max() <= size:
        bad = values[(values < 1) | (values > size)][0]
        raise ValueError(f"{name} must lie in 1..{size}, the size of that dimension, got {bad}")
    return values


def batch_of(problem: Problem) -> Batch:
    """The problem as the kernels take it, its values checked."""
    return with_settings(matrices(problem[0]), *problem[1:])


def with_settings(
    cost: np.ndarray,
    gamma: Tensor,
    dummy: Tensor | None,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    bandwidth: int | None,
) -> Batch:
    rows, columns = cost.shape[2:]
    return Batch(
        cost,
        checked_gamma(gamma),
        one_or_all(dummy),
        checked_lengths(x_lengths, rows, "x_lengths"),
        checked_lengths(y_lengths, columns, "y_lengths"),
        band_of(bandwidth, rows, columns),
    )


def band_of(bandwidth: int | None, rows: int, columns: int) -> int:
    """A band wider than the matrix is none, and sums with it must not overflow."""
    return -1 if bandwidth is None else min(bandwidth, rows + columns)


def batch_to_smooth(smoothing: Smoothing) -> Batch:
    cost, gamma, x_lengths, y_lengths, _ = smoothing
    return batch_of(Problem(cost, gamma, None, x_lengths, y_lengths, None))
