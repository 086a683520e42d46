"""Open ends by the kernels of plain alignments, an oracle of those that know them: a frame of
prices around the costs.

At an open end of y a row of prices is put beside the first or last row, with +inf beside the first
or last column and 0 in the corner. A path that leaves out frames goes along the prices. From a pair
to the corner there are two ways, one of which pays one price q more, so the value of the frame is
too low by gamma log(1 + exp(-q / gamma)) an end. The same in columns for x. With a cost of warping
w, costs are 2 w higher and prices w, and the value (N + M) w: see `compositions`.

Of plain torch in float64 but for the recursion, and so differentiable as often as that is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from softdtw_kernels import _reference_pattern as reference
from softdtw_kernels._operators import recursion
from softdtw_kernels._pattern import check_no_band, check_prices, in_range
from softdtw_kernels._problem import PatternProblem, Problem
from softdtw_kernels._reference import per_item_lengths
from softdtw_kernels._values import is_seen, lengths_in_range


def takes(problem: PatternProblem) -> bool:
    """Ends of one sequence: where a path may leave out frames of both, prices would touch each
    other. And no gamma of 0, if it can be read: of ends of equal cost a frame prefers another one.
    """
    sides = {side for side in (problem.open_begin, problem.open_end) if side}
    if problem.repeat != "xy" or sides not in ({"x"}, {"y"}):
        return False
    return not is_seen(problem.gamma == 0)


def value(problem: PatternProblem) -> Tensor:
    """The value; NaN where a setting or a length is out of range."""
    check_no_band(problem.open_begin, problem.open_end, problem.bandwidth)
    check_prices(problem.warp, problem.skip, True)
    if "x" in problem.open_begin + problem.open_end:
        return value(_transposed(problem))
    cost, gamma, warp, skip, x_lengths, y_lengths, *_ = problem
    rows, columns = cost.shape[-2:]
    n, m = per_item_lengths(x_lengths, rows, cost), per_item_lengths(y_lengths, columns, cost)
    begins, ends = int(problem.open_begin != ""), int(problem.open_end != "")
    price = warp + skip
    around = begins, ends, begins, ends
    inner = cost.double() + 2 * warp.double()[..., None, None]
    frame = torch.nn.functional.pad(inner, around, value=math.inf)
    i = torch.arange(frame.shape[-2], device=cost.device)[:, None] - begins
    j = torch.arange(frame.shape[-1], device=cost.device) - begins
    along = price[..., None, None]
    if begins:
        frame = torch.where((i < 0) & (j >= 0), along, frame)
        frame = torch.where((i < 0) & (j < 0), 0.0, frame)
    if ends:
        frame = torch.where(i == n, along, torch.where(j == m, math.inf, frame))
        frame = torch.where((i == n) & (j == m), 0.0, frame)
    more = begins + ends
    x_framed = None if x_lengths is None else x_lengths + more
    y_framed = None if y_lengths is None else y_lengths + more
    found = recursion.value(Problem(frame, gamma, None, x_framed, y_framed, None))

    hard = gamma == 0
    soft = torch.where(hard, 1.0, gamma)
    too_low = torch.where(hard, (-price).relu(), soft * _log_of_one_plus(-price / soft))
    shifted = found + more * too_low - (n + m)[..., 0, 0] * warp
    result = torch.where(found == math.inf, math.inf, shifted)
    usable = in_range(warp, skip, True)
    usable = usable & lengths_in_range(x_lengths, rows) & lengths_in_range(y_lengths, columns)
    return torch.where(usable, result, math.nan).to(cost.dtype)


def gradient(
    problem: PatternProblem, grad_value: Tensor, with_parameters: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `_reference_pattern.gradient`."""
    return reference.gradient(problem, grad_value, with_parameters, value)


def _log_of_one_plus(power: Tensor) -> Tensor:
    """log(1 + exp(power)). Second derivatives of torch.logaddexp are NaN from powers of -710 on."""
    return -torch.nn.functional.logsigmoid(-power)


def _transposed(problem: PatternProblem) -> PatternProblem:
    """The problem with x and y exchanged."""
    other = {"x": "y", "y": "x", "": ""}
    return problem._replace(
        cost=problem.cost.mT,
        x_lengths=problem.y_lengths,
        y_lengths=problem.x_lengths,
        open_begin=other[problem.open_begin],
        open_end=other[problem.open_end],
    )
