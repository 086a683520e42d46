"""Values that are terms of a sum, as those of a divergence: they need not be exact next to 0, to
which only the slowest kernels are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from .._checks import is_distance
from .._operators import from_features
from .._problem import FeatureProblem, PatternProblem, Problem
from . import features
from .arrays import from_array, without_warnings
from .distances import squared_distances
from .pattern import pattern_value
from .scaling import AGAIN, WITHIN_GAMMA, roundings
from .solve import in_tiers, solve
from .task import batch_of, checked_price
from .warping import clipped


def value_within_gamma(
    problem: Problem | FeatureProblem | PatternProblem,
) -> tuple[Tensor, Tensor]:
    """Values of float64, and what they are off by at most for roundings of gamma: near 0 more than
    those of the other operators are. Of a pattern, one that only warps.
    """
    rows, columns = (
        (problem.x.shape[-2], problem.y.shape[-2])
        if isinstance(problem, FeatureProblem)
        else problem.cost.shape[-2:]
    )
    error = problem.gamma * (2.0**-53 * roundings.py_func(rows, columns))
    if isinstance(problem, PatternProblem):  # a cost of warping is rounded too, beside each cost
        return _warped(problem), 2 * error
    if isinstance(problem, FeatureProblem):
        x, y, *_, bandwidth, kind = problem
        # What is no distance comes without a matrix, though its features may be more by one here.
        if from_features.without_matrix(x, y, bandwidth, kind) or not is_distance(kind):
            task = features.batch_of(problem)
            return from_array(features.solve(task, None, returned=False), x.shape[:-2]), error
        problem = problem.of(squared_distances(x, y))
    batch = batch_of(problem)
    batch.precision = WITHIN_GAMMA
    return from_array(solve(batch, None), problem.cost.shape[:-2]), error


@without_warnings
def _warped(problem: PatternProblem) -> Tensor:
    task = batch_of(problem.of(problem.cost))
    task.warp = clipped(checked_price(problem.warp, "warp_cost"))
    task.precision = WITHIN_GAMMA
    values, status = np.empty(task.pairs), np.empty(task.pairs, np.uint8)
    if task.pairs:
        in_tiers(task, None, values, status)
    found, again = (from_array(a, problem.cost.shape[:-2]) for a in (values, status == AGAIN))
    if again.any():
        fields = zip(problem._fields[:6], problem[:6], strict=True)
        of_items: Any = {name: t[again] for name, t in fields if t is not None}
        found[again] = pattern_value(problem._replace(**of_items))
    return found
