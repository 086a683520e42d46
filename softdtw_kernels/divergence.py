"""The soft-DTW divergence: its value in float64, its derivatives in the dtype of the sequences.

Where x is near y, the divergence is a small difference of large values: in float32 nothing of it
would be left. Its derivatives lose nothing by float32, and cost twice as much in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import costs
from ._checks import (
    Backend,
    Lengths,
    Number,
    Reduction,
    batch_parameter,
    check_bandwidth,
    check_flag,
    check_reduction,
    check_scalar,
)
from ._inputs import Costs, Sequences, expand, reduce, sequences
from ._modes import is_recorded
from ._operators import kernels
from ._operators.function import (
    BatchedFunction,
    EagerFunction,
    choose,
    derivative_is_due,
    forward_rule,
    zeros_if_none,
)
from ._pattern import Pattern, check_pattern
from .costs import Cost

BLOCK = 1 << 20  # cells whose float64 costs are in memory at a time
LEAST_ITEMS = 16
# Of a divergence, for roundings of gamma.
ALLOWED = {torch.float32: 5e-6, torch.float64: 1e-12}


def soft_dtw_divergence(
    x: Tensor,
    y: Tensor,
    *,
    gamma: Number = 1.0,
    cost: Cost = "sqeuclidean",
    warp_cost: Number = 0.0,
    x_lengths: Lengths = None,
    y_lengths: Lengths = None,
    bandwidth: int | None = None,
    pairwise: bool = False,
    reduction: Reduction = "none",
    backend: Backend | None = None,
) -> Tensor:
    """The soft-DTW divergence: soft-DTW without its bias, 0 where x = y.

        D(x, y) = V(x, y) - V(x, x) / 2 - V(y, y) / 2

    V itself is not smallest at x = y and may be negative there. D is 0 or more if k / (1 + k) is a
    positive definite kernel, k = exp(-cost / gamma), without a band and a warp cost: with
    "euclidean" or "manhattan" of one feature, for example. With "sqeuclidean" it can be negative:
    examples are known where it is -0.03 gamma.

    The values are computed in float64 whatever the dtype, since the terms cancel where x is near y:
    the result is the divergence of these very numbers to 1e-5 relative, and 4e-15 of the terms
    (with "cosine" also of 1 for each frame, beside which a cosine is rounded). It is exactly 0 for
    sequences that are equal within their lengths. The derivatives are computed in the dtype of the
    sequences, as those of :func:`soft_dtw`.

    Args:
        x, y, cost, x_lengths, y_lengths, bandwidth, pairwise, reduction, backend: as in
            :func:`soft_dtw`. Each self-term takes the lengths of its own side; for all pairs they
            are computed once a sequence, not once a pair. A cost that is a function is called
            once a term, with features in float64; if it takes none (a module with parameters in
            float32, say) it gets them as they are, and the divergence is as exact as its costs.
        gamma, warp_cost: as in :func:`soft_dtw`, the same in all three terms of an item; for all
            pairs a number or a 0-d tensor.

    Returns:
        The divergences (*), or (A, B) for all pairs, or a 0-d tensor if reduced; in the dtype of
        the sequences, float32 for half precision.

    Raises:
        TypeError, ValueError, RuntimeError, ImportError: as :func:`soft_dtw`.

    Costs the time and memory of three calls of :func:`soft_dtw` in float64, one after another, and
    of three more in the dtype of the sequences if a gradient is due. Where these compute cost
    matrices, they stay in memory until then; of those in float64 there is one at a time.

    >>> import torch
    >>> x = torch.randn(10, 3)
    >>> soft_dtw_divergence(x, x)
    tensor(0.)

    Source: Blondel, Mensch and Vert, "Differentiable Divergences Between Time Series", AISTATS
    2021, Eq. (9); Cuturi, Vert, Birkenes and Matsui, "A Kernel for Time Series Based on Global
    Alignments", ICASSP 2007, for the kernels.
    """
    check_reduction(reduction)
    bandwidth = check_bandwidth(bandwidth)
    pattern, pairwise = check_pattern(warp_cost), check_flag(pairwise, "pairwise")
    if pairwise:
        check_scalar(gamma, "gamma", "pairwise=True")
        check_scalar(warp_cost, "warp_cost", "pairwise=True")
    pairs = sequences(x, y, cost, x_lengths, y_lengths, pairwise, backend)
    settings = gamma, cost, bandwidth, pattern
    own = gamma, warp_cost
    of_pairs = _term(pairs, *settings)
    of_x = _term(_to_itself(pairs, pairs.x, pairs.x_lengths, *own), *settings)
    of_y = _term(_to_itself(pairs, pairs.y, pairs.y_lengths, *own), *settings)
    if pairwise:
        slope, error = (None if t is None else t[:, None] for t in of_x[1:])
        of_x = _Term(of_x.value[:, None], slope, error)
    value = _combine(of_pairs.value, of_x.value, of_y.value)
    # All pairs may be rounded in another order than sequences with themselves. Programs that are
    # recorded keep that rounding of float64: they can't compare sizes that they don't know.
    same = None
    if not is_recorded():
        same = _equal(pairs) & value.isfinite()
        value = torch.where(same, 0, value)
    errors = [t.error for t in (of_pairs, of_x, of_y) if t.error is not None]
    if same is not None and len(errors) == 3:
        error = errors[0] + 0.5 * (errors[1] + errors[2])
        unsure = (error > ALLOWED[pairs.x.dtype] * value.abs()) & ~same
        if unsure.any():
            value[unsure] = _certified(pairs, unsure, gamma, cost, bandwidth, pattern)
    value = reduce(value, reduction).to(pairs.x.dtype)
    if of_pairs.slope is None:
        return value
    slope = _combine(of_pairs.slope, of_x.slope, of_y.slope)
    return choose(_WithSlope, _WithSlopeTwin, (reduce(slope, reduction).to(value.dtype), value))


class _Term(NamedTuple):
    """A soft-DTW value in float64; a tensor of any value that has its derivatives, or None; and
    what roundings of gamma may have added to the value, None if it is certified.
    """

    value: Tensor
    slope: Tensor | None
    error: Tensor | None = None


def _term(
    checked: Sequences, gamma: Number, cost: Cost, bandwidth: int | None, pattern: Pattern | None
) -> _Term:
    """One term. The kernels compute the derivatives for a named cost of float32 features from the
    float32 costs, whose values nobody needs.
    """
    x, y = checked.x, checked.y
    wide = checked._replace(x=x.double(), y=y.double())
    settings = gamma, bandwidth, pattern
    tensors = x, y, *_tensors(gamma, pattern)
    # Values of their own pay where they are narrower than their derivatives, or need not be exact
    # next to 0. A program that is recorded has the derivatives of its parts.
    narrow = x.dtype == torch.float32 and isinstance(cost, str) and pattern is None
    own = not is_recorded() and (narrow or _engine(tensors) is not None)
    if checked.backend == "reference" or not own:
        value = (
            wide.value(cost, *settings)
            if isinstance(cost, str)
            else _of_function(wide, checked, cost).value(*settings)
        )
        return _Term(value, None) if is_recorded() else _Term(value.detach(), value)
    if not isinstance(cost, str):
        costs = _of_function(wide, checked, cost)
        value, error = _of_costs(costs._replace(cost=costs.cost.detach()), *_constant(*settings))
        slope = costs.slope(*settings) if derivative_is_due((costs.cost, *tensors)) else None
        return _Term(value, slope, error)
    wide = wide._replace(x=wide.x.detach(), y=wide.y.detach())
    value, error = _in_blocks(wide, cost, *_constant(*settings))
    slope = checked.slope(cost, *settings) if derivative_is_due(tensors) else None
    return _Term(value, slope, error)


def _tensors(gamma: Number, pattern: Pattern | None) -> list[Tensor]:
    """Those among the settings."""
    settings = gamma, None if pattern is None else pattern.warp_cost
    return [setting for setting in settings if isinstance(setting, Tensor)]


def _constant(
    gamma: Number, bandwidth: int | None, pattern: Pattern | None
) -> tuple[Number, int | None, Pattern | None]:
    """The settings without their graphs."""
    gamma = gamma.detach() if isinstance(gamma, Tensor) else gamma
    if pattern is not None and isinstance(pattern.warp_cost, Tensor):
        pattern = pattern._replace(warp_cost=pattern.warp_cost.detach())
    return gamma, bandwidth, pattern


def _of_function(wide: Sequences, checked: Sequences, cost: Cost) -> Costs:
    """A function's costs in float64: of float64 features, or of the features as they are if it
    refuses others.
    """
    try:
        costs = wide.costs(cost)
    except (RuntimeError, TypeError, ValueError):
        if checked.x.dtype == torch.float64:
            raise
        costs = checked.costs(cost)
    return costs._replace(cost=costs.cost.double())


def _within_gamma(
    checked: Sequences, cost: Cost, gamma: Number, bandwidth: int | None, pattern: Pattern | None
) -> tuple[Tensor, Tensor | None]:
    """The value, and what it may be off by. The value of a sequence with itself is next to 0, to
    which only the slowest kernels are exact; next to the third term that rarely counts.
    """
    engine = _engine((checked.x, checked.y, *_tensors(gamma, pattern)))
    if engine is None:
        return checked.value(cost, gamma, bandwidth, pattern), None
    problem = checked.without_matrix(cost, gamma, bandwidth) if pattern is None else None
    if problem is None:
        return _of_costs(checked.costs(cost), gamma, bandwidth, pattern)
    found: tuple[Tensor, Tensor] = engine.value_within_gamma(problem)
    return found


def _of_costs(
    costs: Costs, gamma: Number, bandwidth: int | None, pattern: Pattern | None
) -> tuple[Tensor, Tensor | None]:
    """As `_within_gamma`."""
    engine = _engine((costs.cost, *_tensors(gamma, pattern)))
    if engine is None:
        return costs.value(gamma, bandwidth, pattern), None
    found: tuple[Tensor, Tensor] = engine.value_within_gamma(
        costs.of_pattern(gamma, pattern, bandwidth)
    )
    return found


def _engine(tensors: tuple[Tensor, ...]) -> Any:
    """Whose values these are; None where none has them, or torch would do something else."""
    engine = kernels.engine_of_plain_call(tensors)
    return engine if hasattr(engine, "value_within_gamma") else None


def _certified(
    pairs: Sequences,
    which: Tensor,
    gamma: Number,
    cost: Cost,
    bandwidth: int | None,
    pattern: Pattern | None,
) -> Tensor:
    """The divergence of some of the pairs, as exact as its terms."""
    batch, pairwise = pairs.batch, pairs.pairwise

    def of_some(setting: Number, name: str) -> Tensor:
        return batch_parameter(setting, name, batch, pairs.x.device)[which].detach()

    gamma = of_some(gamma, "gamma")
    if pattern is not None:
        pattern = pattern._replace(warp_cost=of_some(pattern.warp_cost, "warp_cost"))
    x, y = pairs.x.detach(), pairs.y.detach()
    if pairwise:
        x, y = x[:, None], y[None]
    x, y = (t.expand(*batch, *t.shape[-2:])[which] for t in (x, y))
    n, m = (None if t is None else t[which] for t in pairs.lengths())
    some = pairs.backend, x.shape[:1]
    terms = []
    for a, a_lengths, b, b_lengths in ((x, n, y, m), (x, n, x, n), (y, m, y, m)):
        checked = Sequences(*some, a, b, a_lengths, b_lengths, False)
        wide = checked._replace(x=a.double(), y=b.double())
        costs = wide.costs(cost) if isinstance(cost, str) else _of_function(wide, checked, cost)
        terms.append(costs.value(gamma, bandwidth, pattern))
    return _combine(*terms)


def _in_blocks(
    wide: Sequences, cost: Cost, gamma: Number, bandwidth: int | None, pattern: Pattern | None
) -> tuple[Tensor, Tensor | None]:
    """As `_within_gamma`, on the CPU some items after others: costs that fit a cache take less
    time.
    """
    _, batch, x, y, x_lengths, y_lengths, pairwise = wide
    # Neither compiled code nor a transform gains by blocks.
    step = _items(wide) if wide.backend == "numba" and not derivative_is_due(()) else 0
    if step == 0:
        return _within_gamma(wide, cost, gamma, bandwidth, pattern)
    gamma = batch_parameter(gamma, "gamma", batch, x.device)
    warp = 0.0 if pattern is None else pattern.warp_cost
    warp = batch_parameter(warp, "warp_cost", batch, x.device)
    if not pairwise:
        x, y = x.expand(*batch, *x.shape[-2:]), y.expand(*batch, *y.shape[-2:])
        y_lengths = expand(y_lengths, batch)
    x_lengths = expand(x_lengths, batch[:1] if pairwise else batch)
    values, errors = [], []
    for first in range(0, batch[0], step):
        rows = slice(first, first + step)
        block = wide._replace(
            batch=gamma[rows].shape,
            x=x[rows],
            y=y if pairwise else y[rows],
            x_lengths=None if x_lengths is None else x_lengths[rows],
            y_lengths=y_lengths if pairwise or y_lengths is None else y_lengths[rows],
        )
        of_block = None if pattern is None else pattern._replace(warp_cost=warp[rows])
        value, error = _within_gamma(block, cost, gamma[rows], bandwidth, of_block)
        values.append(value)
        errors += [] if error is None else [error]
    return torch.cat(values), torch.cat(errors) if errors else None


def _items(wide: Sequences) -> int:
    """How many of the first dimension make a block that keeps lanes and threads busy; 0 is all."""
    batch = wide.batch
    if not batch:
        return 0
    several = LEAST_ITEMS * torch.get_num_threads()
    cells = math.prod(batch[1:]) * wide.x.shape[-2] * wide.y.shape[-2]
    step = -(-BLOCK // max(1, cells * several)) * several
    return step if step < batch[0] else 0


def _to_itself(
    pairs: Sequences, z: Tensor, lengths: Tensor | None, gamma: Number, warp_cost: Number
) -> Sequences:
    """Each sequence of one side with itself: as many as differ in frames, length or setting."""
    shapes = [t.shape for t in (lengths, gamma, warp_cost) if isinstance(t, Tensor)]
    batch = z.shape[:-2]
    if shapes:  # which torch takes some tens of microseconds to combine
        batch = torch.broadcast_shapes(batch, *shapes)
    z = z.expand(*batch, *z.shape[-2:])
    return Sequences(pairs.backend, batch, z, z, lengths, lengths, False)


def _combine(of_pairs: Tensor, of_x: Tensor | None, of_y: Tensor | None) -> Tensor:
    """The divergence from its terms; those that are None count for nothing."""
    selves = [term for term in (of_x, of_y) if term is not None]
    # Half of the sum, not two halves: exactly 0 where all three are equal.
    return of_pairs - 0.5 * sum(selves[1:], selves[0]) if selves else of_pairs


def _equal(pairs: Sequences) -> Tensor:
    """Which pairs are one sequence twice, within their lengths; padding has been overwritten."""
    x, y, pairwise = pairs.x.detach(), pairs.y.detach(), pairs.pairwise
    of_x: Tensor | int = x.shape[-2] if pairs.x_lengths is None else pairs.x_lengths
    of_y: Tensor | int = y.shape[-2] if pairs.y_lengths is None else pairs.y_lengths
    if pairwise and isinstance(of_x, Tensor):
        of_x = of_x[..., None]
    if not isinstance(of_x, Tensor):  # the sizes of other calls of a program may be equal or not
        of_x = torch.full((), of_x, device=x.device)
    as_long = of_x == of_y
    size = torch.sym_min(x.shape[-2], y.shape[-2])
    x, y = x[..., :size, :].flatten(-2), y[..., :size, :].flatten(-2)
    if not pairwise:
        return as_long & (x == y).all(-1)
    # Distances, for the comparison of all pairs of frames would need D / M times their costs. Only
    # 0 where all differences are: the squares of those of float32 do not underflow in float64.
    x, y = x.double(), y.double()
    return as_long & (costs.matrix(x, y, "sqeuclidean", False, pairs.backend) == 0)


class _WithSlopeTwin(BatchedFunction):
    """A value with the derivatives of another tensor."""

    @staticmethod
    def forward(slope: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return grad, None


class _WithSlope(EagerFunction, _WithSlopeTwin):
    @staticmethod
    @forward_rule
    def jvp(ctx: Any, saved: Sequence[Tensor], *tangents: Any) -> Tensor:
        return zeros_if_none(tangents[0], saved[0])
