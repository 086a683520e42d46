"""DILATE: a loss for forecasts that tells errors of shape from errors of timing."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from ._checks import (
    Backend,
    Lengths,
    Number,
    Reduction,
    check_backend,
    check_bandwidth,
    check_number,
    check_parameter,
    check_reduction,
)
from ._inputs import Costs, reduce, sequences
from ._operators import kernels
from ._operators.function import is_recorded, is_transformed
from ._problem import Problem
from .costs import Cost, check_cost
from .losses import renamed, short


def dilate_loss(
    input: Tensor,
    target: Tensor,
    *,
    alpha: float = 0.5,
    gamma: Number = 0.01,
    cost: Cost = "sqeuclidean",
    input_lengths: Lengths = None,
    target_lengths: Lengths = None,
    bandwidth: int | None = None,
    reduction: Reduction = "none",
    backend: Backend | None = None,
) -> Tensor:
    """DILATE: soft-DTW, and how far the expected alignment is from the diagonal.

        L = alpha V(x, y) + (1 - alpha) sum over i, j of E[i, j] (i - j)^2 / (n m)

    V is the soft-DTW value, E the expected alignment, n and m the lengths of the item.

    Args:
        input, target: (*, N, D) and (*, M, D), as x and y of :func:`soft_dtw`. Forecasts (B, T) of
            one number a step are x[..., None].
        alpha: the weight of the shape, a number in 0..1; at 1 the loss is soft-DTW.
        gamma: smoothing, greater than 0, otherwise as in :func:`soft_dtw`: at 0 the alignment, and
            with it the temporal term, would be constant almost everywhere.
        cost, input_lengths, target_lengths, bandwidth, reduction, backend: as in :func:`soft_dtw`.

    Returns:
        The losses (*), or a 0-d tensor if reduced; float32 for half precision. +inf where no path
        is allowed.

    Raises:
        TypeError, ValueError: as :func:`soft_dtw`, and for an alpha outside 0..1 or a gamma of 0,
            which in a CUDA tensor gives NaN.
        RuntimeError, ImportError: as :func:`soft_dtw`, the former for a second derivative of the
            temporal term, which would be a third one of V; backend="reference" has it.

    Costs the time of :func:`soft_dtw` forward and backward, and in the backward pass that of its
    second derivative; the memory of three cost matrices.

    >>> import torch
    >>> t = torch.arange(50.0)
    >>> step = (t > 25).float()[:, None]
    >>> late, low = (t > 30).float()[:, None], 0.8 * step
    >>> bool(dilate_loss(late, step, alpha=1.0) < dilate_loss(low, step, alpha=1.0))  # by shape
    True
    >>> bool(dilate_loss(late, step, alpha=0.0) > dilate_loss(low, step, alpha=0.0))  # by time
    True

    Source: Le Guen and Thome, "Shape and Time Distortion Loss for Training Deep Time Series
    Forecasting Models", NeurIPS 2019, Eq. (2) to (5), with the differences of the indices over both
    lengths.
    """
    check_reduction(reduction)
    bandwidth = check_bandwidth(bandwidth)
    alpha = _check_alpha(alpha)
    _check_gamma(gamma)
    lengths = input_lengths, target_lengths
    checked = renamed(sequences, input, target, cost, *lengths, False, backend)
    if alpha == 1:
        return reduce(checked.value(cost, gamma, bandwidth), reduction)
    costs: Costs = checked.costs(cost)
    problem = costs.problem(gamma, bandwidth=bandwidth)
    squares, pairs = _distortion(problem)
    weight = (1 - alpha) / pairs
    if _is_plain(costs.backend, problem):
        loss: Tensor = _Dilate.apply(problem.cost, problem, squares, weight, alpha)
    else:
        ones = _ones(problem)
        expected, _, _ = costs.operators.gradient(problem, ones, False)
        temporal = weight * (expected * squares).sum((-2, -1))
        loss = _total(costs.operators.value(problem), temporal, alpha)
    if isinstance(gamma, Tensor):  # whose values a device keeps to itself
        loss = torch.where(problem.gamma == 0, math.nan, loss)
    return reduce(loss, reduction)


def _is_plain(backend: str, problem: Problem) -> bool:
    """Whether a gradient in the costs, and no more, is due in plain eager mode."""
    if backend == "reference" or is_recorded() or torch.compiler.is_compiling():
        return False
    return not is_transformed() and not problem.gamma.requires_grad


def _ones(problem: Problem) -> Tensor:
    cost = problem.cost
    return torch.ones(cost.shape[:-2], dtype=cost.dtype, device=cost.device)


def _total(value: Tensor, temporal: Tensor, alpha: float) -> Tensor:
    # Where no path is allowed, the loss is +inf whatever its weights.
    shape = alpha * value if alpha > 0 else torch.where(value.isfinite(), 0 * value, value)
    return shape + temporal


class _Dilate(Function):
    """The loss, with the alignment kept for the gradient of V, and one product of the Hessian for
    that of the temporal term: fewer sweeps and passes than the same by its parts.
    """

    @staticmethod
    def forward(
        ctx: Any, cost: Tensor, problem: Problem, squares: Tensor, weight: Tensor, alpha: float
    ) -> Tensor:
        problem = problem._replace(cost=cost)
        expected, _, _ = kernels.gradient(problem, _ones(problem), False)
        value = kernels.value(problem)
        *tensors, ctx.bandwidth = problem
        ctx.save_for_backward(*tensors, expected, value, squares, weight)
        ctx.alpha = alpha
        return _total(value, weight * (expected * squares).sum((-2, -1)), alpha)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        *tensors, expected, value, squares, weight = ctx.saved_tensors
        problem = Problem(*[*tensors, ctx.bandwidth])
        # Without a path 0, even if the gradient of the loss is not finite.
        grad = torch.where(value == math.inf, 0, grad)
        cost = problem.cost
        # gamma may be a number in host memory, its tangent may not.
        of_gamma = torch.zeros_like(problem.gamma, device=cost.device)
        along = squares.expand(cost.shape), of_gamma, None
        _, result, _, _ = kernels.hessian_product(problem, grad * weight, *along)
        result.addcmul_(expected, (ctx.alpha * grad)[..., None, None])
        return result, None, None, None, None


def _check_alpha(alpha: Any) -> float:
    if isinstance(alpha, Tensor):
        raise TypeError("alpha must be a number, got Tensor; it gets no gradient")
    alpha = check_number(alpha, "alpha")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in 0..1, got {alpha}")
    return alpha


def _check_gamma(gamma: Any) -> None:
    """As far as it may be read without waiting for a device."""
    check_parameter(gamma, "gamma")
    if not isinstance(gamma, Tensor):
        is_zero = gamma == 0
    else:
        is_zero = gamma.device.type == "cpu" and _holds_zero(gamma)
    if is_zero:
        raise ValueError(
            "gamma must be greater than 0, got 0: the hard alignment of DILATE has no gradient in "
            "its temporal term"
        )


def _holds_zero(gamma: Tensor) -> bool:
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return False
    try:
        return bool((gamma == 0).any())
    except RuntimeError:  # vmap and fake tensors refuse to be read
        return False


def _distortion(problem: Problem) -> tuple[Tensor, Tensor]:
    """(i - j)^2 of the cells (N, M), and n m of the items (*) or 0-d, in the dtype of the costs."""
    cost, _, _, x_lengths, y_lengths, _ = problem
    rows, columns = cost.shape[-2:]
    i = torch.arange(rows, dtype=cost.dtype, device=cost.device)[:, None]
    j = torch.arange(columns, dtype=cost.dtype, device=cost.device)
    n = torch.full((), rows, device=cost.device) if x_lengths is None else x_lengths
    m = torch.full((), columns, device=cost.device) if y_lengths is None else y_lengths
    return (i - j).square(), (n * m).to(cost.dtype)


class DILATELoss(nn.Module):
    """DILATE between forecasts and targets as a loss.

        loss = mean over the batch of L(input, target)

    Args:
        alpha, cost, bandwidth, backend: as in :func:`dilate_loss`.
        gamma: as in :func:`dilate_loss`. An nn.Parameter is learned; another tensor is a buffer.
        reduction: "mean", "sum" or "none".

    Shape:
        input (*, N, D), target (*, M, D), input_lengths and target_lengths None or (*); returns a
        0-d tensor, or (*) for reduction="none".

    Raises:
        TypeError, ValueError, RuntimeError, ImportError: as :func:`dilate_loss`; of settings, at
            construction.

    Costs as :func:`dilate_loss`.

    >>> import torch
    >>> loss = DILATELoss(alpha=0.8)
    >>> forecast = torch.randn(8, 20, 1, requires_grad=True)
    >>> loss(forecast, torch.randn(8, 20, 1)).backward()

    Source: as :func:`dilate_loss`.
    """

    alpha: float
    gamma: Number
    bandwidth: int | None

    def __init__(
        self,
        alpha: float = 0.5,
        gamma: Number = 0.01,
        cost: Cost = "sqeuclidean",
        *,
        bandwidth: int | None = None,
        reduction: Reduction = "mean",
        backend: Backend | None = None,
    ) -> None:
        super().__init__()
        self.alpha = _check_alpha(alpha)
        _check_gamma(gamma)
        if isinstance(gamma, Tensor) and not isinstance(gamma, nn.Parameter):
            self.register_buffer("gamma", gamma)
        else:
            self.gamma = gamma
        check_cost(cost)
        check_reduction(reduction)
        check_backend(backend)
        self.cost = cost
        self.bandwidth = check_bandwidth(bandwidth)
        self.reduction = reduction
        self.backend = backend

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        input_lengths: Lengths = None,
        target_lengths: Lengths = None,
    ) -> Tensor:
        return dilate_loss(
            input,
            target,
            alpha=self.alpha,
            gamma=self.gamma,
            cost=self.cost,
            input_lengths=input_lengths,
            target_lengths=target_lengths,
            bandwidth=self.bandwidth,
            reduction=self.reduction,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        names = ["alpha", "gamma", "cost", "bandwidth", "reduction"]
        names += ["backend"] if self.backend is not None else []
        return ", ".join(f"{name}={short(getattr(self, name))}" for name in names)
