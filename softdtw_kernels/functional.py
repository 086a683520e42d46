"""Soft-DTW and S2DTW: check the arguments, compute the costs, call the operator, reduce."""

from __future__ import annotations

from torch import Tensor

from ._checks import (
    Backend,
    Lengths,
    Number,
    Reduction,
    check_bandwidth,
    check_flag,
    check_origin_count,
    check_reduction,
)
from ._inputs import Costs, costs_of_matrix, operators_of, reduce, sequences
from ._operators import prepared
from ._pattern import Sides, check_pattern
from .costs import Cost


def soft_dtw(
    x: Tensor,
    y: Tensor,
    *,
    gamma: Number = 1.0,
    cost: Cost = "sqeuclidean",
    warp_cost: Number = 0.0,
    repeat: Sides = "xy",
    open_begin: Sides = "",
    open_end: Sides = "",
    skip_cost: Number = 0.0,
    x_lengths: Lengths = None,
    y_lengths: Lengths = None,
    bandwidth: int | None = None,
    pairwise: bool = False,
    reduction: Reduction = "none",
    backend: Backend | None = None,
) -> Tensor:
    """Soft-DTW between sequences: a smooth minimum over all alignments of their total cost.

        V(x, y) = -gamma log sum over alignments A of exp(-<A, C(x, y)> / gamma)

    An alignment A is a path of pairs (i, j) from (0, 0) to (N - 1, M - 1) by steps (1, 0), (0, 1)
    and (1, 1), and C[i, j] the cost between x_i and y_j. gamma = 0 gives DTW.

    Args:
        x: (*, N, D), float32 or float64; float16 and bfloat16 are computed in float32. The batch
            comes first. Forecasts (B, T) of one number a step are x[..., None], (B, T, 1): a
            matrix alone is one sequence, here of B frames.
        y: (*, M, D); the leading dimensions broadcast with those of x.
        gamma: smoothing, at least 0, in the units of the cost: a number or a tensor, 0-d or of
            one value an item, which broadcasts to (*), or to (A, B) for all pairs; a tensor gets a
            gradient of its own shape. At 0 the gradient is that of one optimal path, and 0 in
            gamma. No call waits for the device, but the gradient of a tensor in host memory comes
            there with a wait.
        cost: "sqeuclidean" |x_i - y_j|^2 (no factor 1/2), "euclidean" (with subgradient 0 at
            distance 0), "manhattan" sum over d of |x_id - y_jd| (with subgradient 0 where they are
            equal), "cosine" 1 - cos, "shifted_cosine" -cos, "negative_dot" -<x_i, y_j>, or a
            function of broadcastable (..., N, D) and (..., M, D) that returns (..., N, M).
        warp_cost: the price of each step (1, 0) or (0, 1), which matches a frame once more: of any
            sign, a number or a tensor as gamma may be, which gets a gradient. Three prices u, l
            and d of the steps (1, 0), (0, 1) and (1, 1) are those of warp_cost = (u + l - d) / 2
            and a constant, (N - 1) u + (M - 1) l - (N + M - 2) warp_cost.
        repeat: whose frames may be matched more than once: "xy", "x", "y" or "". With "y" there is
            no step (0, 1): every frame of x is matched exactly once, which takes N >= M unless y
            has an open end. "x" is the transpose, and "" has steps (1, 1) alone.
        open_begin, open_end: "", "x", "y" or "xy": whose first, or last, frames may stay unmatched.
            At one end a path leaves out frames of x or of y, never of both. With y open at both
            ends x is searched for in y.
        skip_cost: the price of each frame that an open end leaves out, of either sequence, as
            warp_cost may be. At 0, with costs that are positive, the cheapest match is a short one.
        x_lengths: None (all N) or integers of shape (*), each 1..N: the frames of x that count.
            What lies beyond, NaN included, changes nothing and gets gradient 0.
        y_lengths: likewise for y.
        bandwidth: None or an integer w (Sakoe-Chiba): only pairs with
            min(0, M - N) - w <= j - i <= max(0, M - N) + w are allowed, N and M being the lengths
            of the pair at hand. None with open ends.
        pairwise: compare every sequence of x (A, N, D) with every one of y (B, M, D), without
            copying them A x B times. Lengths then have the shapes (A,) and (B,).
        reduction: "none", "mean" or "sum" over all values.
        backend: None chooses by device; "numba" (CPU), "cuda", or "reference" (plain torch).

    Returns:
        The values (*), or (A, B) for all pairs, or a 0-d tensor if reduced; float32 for half
        precision. +inf (gradient 0) where no path is allowed, NaN where a cost is NaN. A mean or a
        sum with an item of +inf is +inf: nothing is left out.

    Raises:
        TypeError, ValueError: for arguments of another type, dtype, shape or range (of gamma, 0 to
            1e28; prices are finite). Values of settings and lengths in CUDA tensors are not read;
            out of range they give NaN.
        RuntimeError: where a cost function fails, from its own error; and for a third derivative,
            which backend="reference" has.
        ImportError: for CUDA tensors without CuPy.

    Costs O(N M (D + 1)) time a pair, O(N M w / max(N, M)) with a narrow band. The first derivatives
    store neither a cost matrix nor its gradient, but checkpoints of up to a tenth of one (a fifth
    on CUDA, a third in float64). They do store both if cost is "euclidean" or "manhattan"
    (which takes three more) or a function, for second derivatives, at gamma = 0 (on the CPU, in a
    narrow band, only the costs in it), and where it takes less time: short sequences, on the CPU
    more than 64 or 128 features, on CUDA all pairs. On CUDA checkpoints stay between forward and
    backward if they are small or of at most some hundred pairs. Differentiable twice, in forward
    mode too.

    With a warp_cost, less repeats or open ends costs are always stored, on CUDA with a warp_cost in
    float64. On the CPU a warp_cost and less repeats take no time, open ends up to a third more, and
    more than that where values are near 0 or calls small (gamma = 0 takes half more with a
    warp_cost); a single long pair with open ends runs on one thread. Second derivatives take
    about 100 ns a pair of frames. On CUDA less repeats and open ends take a tenth more machine
    instructions; as backward goes forward again, and as the kernels for batches of plain pairs are
    quicker, training takes up to twice, with thousands of pairs of at most 16 frames three times
    those of plain pairs. Second derivatives run in plain torch there.

    >>> import torch
    >>> x = torch.tensor([[0.0], [1.0], [2.0]], requires_grad=True)
    >>> y = torch.tensor([[0.0], [2.0]])
    >>> soft_dtw(x, y, gamma=0.0).detach()
    tensor(1.)
    >>> soft_dtw(x, y, gamma=1.0).backward()
    >>> x.grad.shape
    torch.Size([3, 1])
    >>> soft_dtw(torch.randn(5, 20, 3), torch.randn(7, 30, 3), pairwise=True).shape
    torch.Size([5, 7])
    >>> soft_dtw(x, y, gamma=0.0, warp_cost=10.0).detach()  # two steps, one of which repeats
    tensor(11.)
    >>> series = torch.tensor([[9.0], [9.0], [0.0], [1.0], [2.0], [9.0]])
    >>> soft_dtw(x, series, gamma=0.0, open_begin="y", open_end="y").detach()  # x is in there
    tensor(0.)

    Source: Cuturi and Blondel, "Soft-DTW: a differentiable loss function for time-series", ICML
    2017, Eq. (1) and Algorithms 1 and 2.
    """
    check_reduction(reduction)
    bandwidth = check_bandwidth(bandwidth)
    pattern = check_pattern(warp_cost, repeat, open_begin, open_end, skip_cost, bandwidth)
    value = None
    if (
        pattern is None
        and isinstance(cost, str)
        and cost == "sqeuclidean"
        and pairwise is False
        and x_lengths is y_lengths is None
    ):
        value = prepared.of_features(x, y, gamma, bandwidth, backend)
    if value is None:
        checked = sequences(x, y, cost, x_lengths, y_lengths, pairwise, backend)
        value = checked.value(cost, gamma, bandwidth, pattern)
    return reduce(value, reduction)


def soft_dtw_from_cost(
    cost: Tensor,
    *,
    gamma: Number = 1.0,
    warp_cost: Number = 0.0,
    repeat: Sides = "xy",
    open_begin: Sides = "",
    open_end: Sides = "",
    skip_cost: Number = 0.0,
    x_lengths: Lengths = None,
    y_lengths: Lengths = None,
    bandwidth: int | None = None,
    reduction: Reduction = "none",
    backend: Backend | None = None,
) -> Tensor:
    """Soft-DTW of cost matrices: :func:`soft_dtw` for a cost of your own.

        R[i, j] = C[i, j] + softmin_gamma(R[i - 1, j - 1], R[i - 1, j], R[i, j - 1]),  V = R[N, M]

    Args:
        cost: (*, N, M), float32 or float64 of any strides and sign; float16 and bfloat16 are
            computed in float32. +inf forbids a pair. Pairs beyond the lengths or outside the band
            are not read.
        gamma, warp_cost, repeat, open_begin, open_end, skip_cost: as in :func:`soft_dtw`.
        x_lengths, y_lengths, bandwidth, reduction, backend: likewise, the lengths of shape (*).

    Returns:
        The values (*), or a 0-d tensor if reduced.

    Raises:
        TypeError, ValueError, RuntimeError, ImportError: as :func:`soft_dtw`.

    Costs O(N M) time; beyond the cost and its gradient, memory of O(N + M) a row of checkpoints. On
    CUDA, checkpoints stay in memory between forward and backward, if a gradient is due: about a
    tenth of the cost of a long pair and a quarter of that of a batch (a third in float64), or none
    where they would be more than 0.4 of it and 32 MiB. On the CPU, calls of up to 2^18 cells
    compute the gradient with the value and keep it until then: as much memory as the cost.

    >>> import torch
    >>> cost = torch.tensor([[0.0, 1.0, 4.0], [4.0, 1.0, 0.0]], requires_grad=True)
    >>> value = soft_dtw_from_cost(cost, gamma=0.0)
    >>> value.backward()  # the gradient is the alignment
    >>> value.item(), cost.grad
    (1.0, tensor([[1., 1., 0.],
            [0., 0., 1.]]))

    Source: Cuturi and Blondel 2017, Algorithms 1 and 2.
    """
    check_reduction(reduction)
    bandwidth = check_bandwidth(bandwidth)
    pattern = check_pattern(warp_cost, repeat, open_begin, open_end, skip_cost, bandwidth)
    value = None
    if pattern is None and x_lengths is y_lengths is None:
        value = prepared.of_costs(cost, gamma, None, backend, bandwidth)
    if value is None:
        costs = costs_of_matrix(cost, x_lengths, y_lengths, backend)
        value = costs.value(gamma, bandwidth, pattern)
    return reduce(value, reduction)


def s2dtw(
    x: Tensor,
    y: Tensor,
    *,
    gamma: Number = 0.1,
    cost: Cost = "shifted_cosine",
    smoothing: bool = True,
    dummy_cost: Number | None = 0.5,
    origin_count: float = 1,
    x_lengths: Lengths = None,
    y_lengths: Lengths = None,
    pairwise: bool = False,
    reduction: Reduction = "none",
    backend: Backend | None = None,
) -> Tensor:
    """S2DTW between sequences: soft-DTW with local smoothing and weak alignment.

        s[i, j] = C[i, j] + softmin_gamma(C[i - 1, j - 1], C[i - 1, j], C[i, j - 1])
        V = soft-DTW of the (2 N + 1) x (2 M + 1) lattice L, L[2 i + 1, 2 j + 1] = s[i, j],
            every other cell the dummy cost

    The smoothing takes the raw costs of the predecessors inside the matrix; the dummies let a path
    pass by pairs that do not match. Without smoothing this is weak soft-DTW, without dummies
    locally smoothed soft-DTW, without both soft-DTW.

    Args:
        x, y: (*, N, D) and (*, M, D), as in :func:`soft_dtw`.
        gamma: smoothing, as in :func:`soft_dtw`.
        cost: as in :func:`soft_dtw`; the paper's is "shifted_cosine".
        smoothing: whether costs are smoothed locally.
        dummy_cost: the cost of a dummy cell, a number or a tensor as gamma may be (which gets a
            gradient); None is no dummies at all, which is not the same as 0.
        origin_count: the first pair has no predecessor and gets the softmin of this many zeros,
            -gamma log(origin_count): 1 by default, 3 in the authors' released code.
        x_lengths, y_lengths, pairwise, reduction, backend: as in :func:`soft_dtw`.

    Returns:
        The values (*), or (A, B) for all pairs, or a 0-d tensor if reduced. +inf (gradient 0)
        where no path is allowed, which dummies exclude. With smoothing, a pair whose predecessors
        are all +inf is +inf itself.

    Raises:
        TypeError, ValueError, RuntimeError, ImportError: as :func:`soft_dtw`.

    Costs O(N M) time for the four cells a pair, which are never stored; memory as
    :func:`soft_dtw`, and one more cost matrix while the smoothed costs are in use.

    >>> import torch
    >>> x, y = torch.randn(4, 8, 16), torch.randn(4, 8, 16)
    >>> s2dtw(x, y, pairwise=True).shape
    torch.Size([4, 4])
    >>> torch.equal(s2dtw(x, y, smoothing=False, dummy_cost=None),
    ...             soft_dtw(x, y, gamma=0.1, cost="shifted_cosine"))
    True

    Source: Ko et al., "Video-Text Representation Learning via Differentiable Weak Temporal
    Alignment", CVPR 2022, Section 3.
    """
    check_reduction(reduction)
    origin_count, smoothing = check_origin_count(origin_count), check_flag(smoothing, "smoothing")
    costs = sequences(x, y, cost, x_lengths, y_lengths, pairwise, backend).costs(cost)
    return reduce(_weak_value(costs, gamma, smoothing, dummy_cost, origin_count), reduction)


def s2dtw_from_cost(
    cost: Tensor,
    *,
    gamma: Number = 0.1,
    smoothing: bool = True,
    dummy_cost: Number | None = 0.5,
    origin_count: float = 1,
    x_lengths: Lengths = None,
    y_lengths: Lengths = None,
    reduction: Reduction = "none",
    backend: Backend | None = None,
) -> Tensor:
    """S2DTW of cost matrices: :func:`s2dtw` for a cost of your own.

    Args:
        cost: (*, N, M), as in :func:`soft_dtw_from_cost`.
        gamma, smoothing, dummy_cost, origin_count: as in :func:`s2dtw`. A smoothed cost is one
            floating-point number: of a cost on top of a mask of 1e30 nothing is left in it. The
            gradient passes through the softmin at its exact weights, those of masks too.
        x_lengths, y_lengths, reduction, backend: as in :func:`soft_dtw_from_cost`.

    Returns:
        The values (*), or a 0-d tensor if reduced.

    Raises:
        TypeError, ValueError, RuntimeError, ImportError: as :func:`soft_dtw`.

    Costs as :func:`s2dtw`.

    >>> import torch
    >>> cost = torch.full((1, 1), -1.0)
    >>> s2dtw_from_cost(cost, gamma=0.0)  # dummy, pair, dummy
    tensor(0.)
    >>> s2dtw_from_cost(-cost, gamma=0.0, dummy_cost=0.25)  # four dummies: the pair costs more
    tensor(1.)

    Source: Ko et al. 2022, Section 3.
    """
    check_reduction(reduction)
    origin_count, smoothing = check_origin_count(origin_count), check_flag(smoothing, "smoothing")
    value = None
    if x_lengths is y_lengths is None:
        count = origin_count if smoothing else None
        value = prepared.of_costs(cost, gamma, dummy_cost, backend, origin_count=count)
    if value is None:
        costs = costs_of_matrix(cost, x_lengths, y_lengths, backend)
        value = _weak_value(costs, gamma, smoothing, dummy_cost, origin_count)
    return reduce(value, reduction)


def _weak_value(
    costs: Costs,
    gamma: Number,
    smoothing: bool,
    dummy_cost: Number | None,
    origin_count: float,
) -> Tensor:
    if not smoothing:
        return operators_of(costs.backend).value(costs.problem(gamma, dummy_cost))
    return operators_of(costs.backend).smoothed_value(
        costs.smoothed(gamma, dummy_cost, origin_count)
    )
