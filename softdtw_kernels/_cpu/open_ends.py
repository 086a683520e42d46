"""Open ends and their prices, and all patterns at gamma = 0, by the kernels of plain lattices: the
results of a call.

`ends` and `hard_patterns` say what the kernels do. The sums that the former return are those of a
lattice in which a path that begins at a pair has come there from one or two cells of a border: from
here they are what the pair itself has.
"""

from __future__ import annotations

import numpy as np

from .._problem import PatternProblem
from .batch import Batch, Gradients
from .ends import ABOVE, ABOVE_PLACES, BESIDE, BESIDE_PLACES, LEFT_OUT, Open
from .hard_tier import hard_minimum
from .results import Results, spread
from .scaling import NOT_A_NUMBER, SURE, usable


def solve_open(task: Batch, problem: PatternProblem, skip: np.ndarray, results: Results) -> None:
    """task: the problem without its open ends, but with its costs of warping; skip: the prices."""
    task.open = Open(problem.open_begin, problem.open_end, problem.repeat, skip)
    gradients = results.by_tiers(task)
    if gradients is None:
        return
    if results.with_settings:
        skipped, bits = _begun(task, task.open, gradients)
        items = np.flatnonzero(results.status == SURE)
        by_gamma = -np.log(2.0) * (gradients.sums[1] - bits)
        _set_sums(task, gradients, items, by_gamma[items], skipped[items], results)
    spread(results, task, np.flatnonzero(results.status == NOT_A_NUMBER), np.nan)


def solve_hard(task: Batch, problem: PatternProblem, skip: np.ndarray, results: Results) -> None:
    """The pairs of gamma = 0. task: with its costs of warping."""
    items = np.flatnonzero(np.broadcast_to(task.gamma == 0.0, task.pairs))
    task.open = Open(problem.open_begin, problem.open_end, problem.repeat, skip)
    gradients = None
    if results.scale is not None:
        scale = results.scale.astype(task.cost.dtype)
        gradients = Gradients(scale, results.with_settings, results.grad)
    hard_minimum(task, gradients, items, results.values, results.status)
    if gradients is None or not results.with_settings:
        return
    skipped = gradients.sums[LEFT_OUT, items]
    by_gamma = np.where(np.isnan(skipped), np.nan, 0.0)
    _set_sums(task, gradients, items, by_gamma, skipped, results)


def _set_sums(
    task: Batch,
    gradients: Gradients,
    items: np.ndarray,
    by_gamma: np.ndarray,
    skipped: np.ndarray,
    results: Results,
) -> None:
    """The gradients by the settings of some pairs, given how many frames they leave out: 0 of those
    without a path. 2 K = steps that repeat + N + M - frames left out, for a path of K pairs.
    """
    n, m = task.lengths
    visits = results.grad.sum((2, 3), dtype=np.float64).reshape(-1)[items]
    by_warp = 2.0 * visits - (n + m)[items] * gradients.scale[items].astype(np.float64) + skipped
    has_path = results.values[items] != np.inf
    results.sums[:, items] = np.where(has_path, (by_gamma, by_warp, skipped), 0.0)


def _begun(task: Batch, ends: Open, gradients: Gradients) -> tuple[np.ndarray, np.ndarray]:
    """How many frames are left out, and the entropies in bits of the choice between two cells of
    the border for one begin, which is none; both times the scale.
    """
    gamma = np.where(usable.py_func(task.gamma), task.gamma, 1.0)
    log_r = -(task.price / gamma)
    r = np.exp(np.minimum(log_r, 0.0))
    one = np.exp(-np.maximum(log_r, 0.0))  # of r and 1 what they are over the larger one
    second = r / (one + r)  # the share of the second cell of two
    first = one / (one + r)
    origin = gradients.cost[:, :, 0, 0].reshape(-1).astype(np.float64)
    up, left = "y" in ends.repeat, "x" in ends.repeat
    of_x, of_y = "x" in ends.begin, "y" in ends.begin
    summed = (of_y and up) or (of_x and left)
    bits = _surprise(second) + _surprise(first)
    skipped, removed = gradients.sums[LEFT_OUT].copy(), np.zeros_like(origin)
    corner = np.ones_like(second)
    for is_open, repeats, rows in (
        (of_y, up, (ABOVE, ABOVE_PLACES)),
        (of_x, left, (BESIDE, BESIDE_PLACES)),
    ):
        if not is_open:
            continue
        mass, places = (gradients.sums[row] for row in rows)
        if not repeats:
            skipped += places
            continue
        at_origin = origin * second
        elsewhere = mass - at_origin
        skipped += places - elsewhere * second - at_origin
        removed += elsewhere * bits + origin * _surprise(second)
        corner = corner - second
    if summed:
        removed += origin * _surprise(np.maximum(corner, 0.0))
    return skipped, removed


def _surprise(p: np.ndarray) -> np.ndarray:
    """-p log2(p), 0 at p = 0."""
    return -p * np.log2(np.where(p > 0.0, p, 1.0))
