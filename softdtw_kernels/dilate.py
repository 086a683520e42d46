"""DILATE: a loss for forecasts that tells errors of shape from errors of timing."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

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
    second derivative; the memory of four cost matrices.

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
    ones = torch.ones(problem.cost.shape[:-2], dtype=problem.cost.dtype, device=problem.cost.device)
    expected, _, _ = costs.operators.gradient(problem, ones, False)
    value = _value(costs, problem, expected)
    # Where no path is allowed, the loss is +inf whatever its weights.
    shape = alpha * value if alpha > 0 else torch.where(value.isfinite(), 0 * value, value)
    temporal = (expected * _distortion(problem)).sum((-2, -1), dtype=torch.float64)
    loss = shape + ((1 - alpha) * temporal).to(value.dtype)
    if isinstance(gamma, Tensor):  # whose values a device keeps to itself
        loss = torch.where(problem.gamma == 0, math.nan, loss)
    return reduce(loss, reduction)


def _value(costs: Costs, problem: Problem, expected: Tensor) -> Tensor:
    """V, whose gradient in the costs is the expected alignment that is at hand already.

    Its second derivative would be lost, but that of the temporal term raises anyway. Where others
    differentiate what is called here, or gamma is learned, it is the plain operator.
    """
    plain = costs.backend == "reference" or problem.gamma.requires_grad
    if plain or is_recorded() or torch.compiler.is_compiling() or is_transformed():
        return costs.operators.value(problem)
    constant = problem._replace(cost=problem.cost.detach())
    value = costs.operators.value(constant)
    if not problem.cost.requires_grad:
        return value
    result: Tensor = _Known.apply(problem.cost, value, expected.detach())
    return result


class _Known(Function):
    """A value whose gradient in the cost is known. Only for plain reverse mode."""

    @staticmethod
    def forward(ctx: Any, cost: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return torch.where(gradient == 0, 0, grad[..., None, None] * gradient), None, None


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


def _distortion(problem: Problem) -> Tensor:
    """(i - j)^2 / (n m) of the items."""
    cost, _, _, x_lengths, y_lengths, _ = problem
    rows, columns = cost.shape[-2:]
    i = torch.arange(rows, dtype=torch.float64, device=cost.device)[:, None]
    j = torch.arange(columns, dtype=torch.float64, device=cost.device)
    n = rows if x_lengths is None else x_lengths[..., None, None]
    m = columns if y_lengths is None else y_lengths[..., None, None]
    return ((i - j).square() / (n * m)).to(cost.dtype)


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

    gamma: Number

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
