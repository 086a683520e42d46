"""The hard minimum, gamma = 0, of features in a narrow band: only the costs in it are stored.

Each row holds its columns of the band, as many in every row. What `hard` reads as the matrix (N, M)
is a view of that in which rows overlap: it reads nothing outside of the band. The gradient by the
features goes along the path, without one by the costs.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided

from .._lattice import band_limits
from .arrays import NOTHING
from .batch import ALL, Batch
from .distances import squared_distances
from .feature_batch import FeatureBatch, FeatureGradients, spread_nan
from .hard_tier import cheapest_paths
from .solve import solve as solve_costs

LONG = 2**18  # cells of a matrix that is not worth less than the rows of a band, one by one
ROWS = 64  # whose distances are computed at a time, at least


def is_narrow(rows: int, columns: int, bandwidth: int) -> bool:
    """Whether the band saves most of the matrix."""
    low, high = band_limits(rows, columns, bandwidth)
    return bandwidth >= 0 and rows * columns > LONG and 4 * (high - low + 1) <= columns


def solve(
    task: FeatureBatch, gradients: FeatureGradients | None, items: np.ndarray, out: np.ndarray
) -> np.ndarray:
    """Finish the pairs of gamma = 0 in a narrow band, through the costs in it; the other pairs."""
    rows, columns = task.x.shape[1], task.y.shape[1]
    if not is_narrow(rows, columns, task.bandwidth):
        return items
    zero = (np.broadcast_to(task.gamma, task.pairs) == 0.0)[items]
    for q in items[zero]:
        n, m, _ = task.lattice(q)
        x, y = task.x[task.x_of[q], :n], task.y[task.y_of[q], :m]
        limits = band_limits(n, m, task.bandwidth)
        of_pair = x, y, task.distance
        value, paths = value_and_path(*of_pair, limits, task.bandwidth)
        out[q] = value[0]
        if gradients is None:
            continue
        path = next(paths)
        if np.isnan(value[0]) or value[0] == -np.inf:
            spread_nan(task, gradients, np.array([q]))
            continue
        by_x, by_y = gradients_along(path, *of_pair, float(gradients.scale[q]))
        for into, by in ((gradients.x, by_x), (gradients.y, by_y)):
            if len(into):
                into[q, : len(by)] = by
    return items[~zero]


def value_and_path(
    x: np.ndarray, y: np.ndarray, distance: bool, limits: tuple[int, int], bandwidth: int
) -> tuple[np.ndarray, Iterator[np.ndarray]]:
    """Of a pair of sequences (N, D) and (M, D): the value (1,), and its path if it is asked for,
    without a cell where there is none. limits: of the band, see `band_limits`.
    """
    costs = costs_in_band(x, y, distance, *limits)
    batch = Batch(costs[None, None], np.zeros(1), NOTHING, ALL, ALL, bandwidth)
    return solve_costs(batch, None), cheapest_paths(batch)


def costs_in_band(x: np.ndarray, y: np.ndarray, distance: bool, low: int, high: int) -> np.ndarray:
    """(N, M), of which only low <= j - i <= high may be read."""
    rows, columns, width = len(x), len(y), high - low + 1
    band = np.empty((rows, width), x.dtype)
    height = max(ROWS, width)
    for first in range(0, rows, height):
        last = min(rows, first + height)
        left = first + low  # of the first row; each begins a column further than the one above
        start, stop = max(0, left), min(columns, last + high)
        square = np.full((last - first, last - first + width - 1), np.inf, x.dtype)
        of_rows, of_columns = torch.from_numpy(x[first:last]), torch.from_numpy(y[start:stop])
        if distance:
            found = squared_distances(of_rows, of_columns)
        else:
            found = (of_rows.double() @ -of_columns.double().mT).to(of_rows)
        square[:, start - left : stop - left] = found.numpy()
        row, column = square.strides
        band[first:last] = as_strided(square, (last - first, width), (row + column, column))
    row, column = band.strides
    return as_strided(band.reshape(-1)[-low:], (rows, columns), (row - column, column))


def gradients_along(
    path: np.ndarray, x: np.ndarray, y: np.ndarray, distance: bool, factor: float
) -> tuple[np.ndarray, np.ndarray]:
    """Of factor times the costs on a path, by x and y."""
    of_x, of_y = (a[path[:, k]].astype(np.float64) for k, a in enumerate((x, y)))
    by_x = 2.0 * (of_x - of_y) if distance else -of_y
    by_y = -by_x if distance else -of_x
    results = []
    for k, (by, a) in enumerate(((by_x, x), (by_y, y))):
        frames = path[:, k]  # in order
        begins = np.flatnonzero(np.diff(frames, prepend=-1))
        result = np.zeros(a.shape)
        result[frames[begins]] = factor * np.add.reduceat(by, begins)
        results.append(result)
    return results[0], results[1]
