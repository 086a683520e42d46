"""DILATE: a loss for forecasts that tells errors of shape from errors of timing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ._checks import (
    Backend,
    Lengths,
    Number,
    Reduction,
    batch_parameter,
    check_bandwidth,
    check_number,
    check_parameter,
    check_reduction,
    is_distance,
)
from ._inputs import Costs, Sequences, operators_of, reduce, sequences
from ._modes import is_recorded, is_transformed
from ._operators import kernels
from ._operators.function import gradient_is_due
from ._problem import FeatureProblem, Problem
from .costs import Cost, fused_rule
from .losses import _AlignmentLoss, renamed


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

    Costs the time of a second derivative of :func:`soft_dtw`, in the forward pass if a gradient is
    due, and the memory of three cost matrices; of squared distances on the CPU that of three for
    some items at a time.

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
    features = input, target, cost, input_lengths, target_lengths, False, backend
    return reduce(renamed(_loss, features, cost, gamma, bandwidth, alpha), reduction)


def _loss(
    features: tuple[Any, ...], cost: Cost, gamma: Number, bandwidth: int | None, alpha: float
) -> Tensor:
    checked = sequences(*features)
    if alpha == 1:
        return checked.value(cost, gamma, bandwidth)
    loss = _from_features(checked, cost, gamma, bandwidth, alpha)
    if loss is None:
        loss = _from_costs(checked.costs(cost), gamma, bandwidth, alpha)
    return loss


def _from_costs(costs: Costs, gamma: Number, bandwidth: int | None, alpha: float) -> Tensor:
    problem = costs.problem(gamma, bandwidth=bandwidth)
    cost = problem.cost
    squares, weight = _distortion(cost, cost.shape[-2:], problem[3:5], alpha)
    if not _is_simple(costs.backend, problem.gamma):
        ones = _ones(cost)
        expected, _, _ = operators_of(costs.backend).gradient(problem, ones, False)
        temporal = weight * (expected * squares).sum((-2, -1))
        loss = _total(operators_of(costs.backend).value(problem), temporal, alpha)
    elif gradient_is_due((cost,)):
        loss = _OfCosts.apply(cost, _Anchor.apply(cost), problem, squares, weight, alpha)
    else:
        loss, _ = _weighted(problem, squares, weight, alpha, False)
    if isinstance(gamma, Tensor):  # whose values a device keeps to itself
        loss = torch.where(problem.gamma == 0, math.nan, loss)
    return loss


def _from_features(
    checked: Sequences, cost: Cost, gamma: Number, bandwidth: int | None, alpha: float
) -> Tensor | None:
    """Of distances on the CPU, without a matrix of their costs; None of anything else."""
    backend, batch, x, y, *_ = checked
    rule = fused_rule(cost)
    if rule is None or not is_distance(rule.kind):
        return None
    x, y = (t.expand(*batch, *t.shape[-2:]) for t in rule.prepare(x, y))
    gammas = batch_parameter(gamma, "gamma", batch, x.device, backend)
    problem = FeatureProblem(x, y, gammas, *checked.lengths(), bandwidth, rule.kind)
    engine = kernels.engine_of_plain_call(problem)
    if engine is None or not _is_simple(backend, gammas):
        return None
    squares, weight = _distortion(x, (x.shape[-2], y.shape[-2]), problem[3:5], alpha)
    args = engine, problem, squares, (alpha, weight)
    loss: Tensor
    if gradient_is_due((x, y)):
        loss = _OfFeatures.apply(x, y, _Anchor.apply(x, y), *args)
    else:
        loss, _, _ = engine.directional.of_features(*args[1:], False, False)
    return loss


def _is_simple(backend: str, gamma: Tensor) -> bool:
    """Whether a gradient in costs or features, and no more, may be due in eager mode."""
    if backend == "reference" or is_recorded() or torch.compiler.is_compiling():
        return False
    return not is_transformed() and not gamma.requires_grad


def _ones(cost: Tensor) -> Tensor:
    return torch.ones(cost.shape[:-2], dtype=cost.dtype, device=cost.device)


def _total(value: Tensor, temporal: Tensor, alpha: float) -> Tensor:
    # Where no path is allowed, the loss is +inf whatever its weights.
    shape = alpha * value if alpha > 0 else torch.where(value.isfinite(), 0 * value, value)
    return shape + temporal


class _Anchor(Function):
    """A zero that hangs on tensors, for a gradient that is not to be differentiated: torch's
    `once_differentiable` makes it a constant, and what is asked of it silently 0.
    """

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        return tensors[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[None, ...]:
        if grad is None:  # of the loss, which goes its own way
            return (None,) * len(ctx.needs_input_grad)
        raise RuntimeError(
            "dilate_loss has no second derivative, which would be a third one of soft-DTW; "
            "backend='reference' (plain torch, slow) gives derivatives of any order"
        )


class _OfCosts(Function):
    """The loss, which keeps its gradient by the costs: backward only multiplies."""

    @staticmethod
    def forward(
        ctx: Any,
        cost: Tensor,
        anchor: Tensor,
        problem: Problem,
        squares: Tensor,
        weight: Tensor,
        alpha: float,
    ) -> Tensor:
        problem = problem._replace(cost=cost)
        loss, by_cost = _weighted(problem, squares, weight, alpha, True)
        ctx.save_for_backward(by_cost, loss == math.inf, anchor)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        by_cost, without_path, anchor = ctx.saved_tensors
        by_cost = anchored(by_cost, anchor)
        # Without a path 0, even if the gradient of the loss is not finite.
        grad = torch.where(without_path, 0, grad)
        engine = kernels.engine_of_plain_call((by_cost, grad))
        if engine is None or torch.is_grad_enabled():
            scaled = torch.where(by_cost == 0, 0, by_cost * grad[..., None, None])
        else:
            scaled = engine.directional.times(by_cost, grad)
        return scaled, None, None, None, None, None


def anchored(gradient: Tensor, anchor: Tensor) -> Tensor:
    """A gradient that is kept; where it may be differentiated, with the error that this will raise.
    What it is multiplied by has its derivatives.
    """
    return gradient + anchor if torch.is_grad_enabled() else gradient


def _weighted(
    problem: Problem, squares: Tensor, weight: Tensor, alpha: float, with_grad: bool
) -> tuple[Tensor, Tensor]:
    """alpha V + weight <E, squares>; if asked for, its gradient by the costs, else anything.

    The CPU's engine does all of it in one sweep forward and one backward.
    """
    cost, ones = problem.cost, _ones(problem.cost)
    along = squares.expand(cost.shape)
    engine = kernels.engine_of_plain_call((*problem, along, weight))
    if engine is not None:
        return engine.directional.of_costs(problem, along, (alpha, weight), with_grad)
    expected, _, _ = kernels.gradient(problem, ones, False)
    loss = _total(kernels.value(problem), weight * (expected * squares).sum((-2, -1)), alpha)
    if with_grad:
        # gamma may be a number in host memory, its tangent may not.
        of_gamma = torch.zeros_like(problem.gamma, device=cost.device)
        _, result, _, _ = kernels.hessian_product(problem, weight * ones, along, of_gamma, None)
        expected = result.add_(expected, alpha=alpha)
    return loss, expected


class _OfFeatures(Function):
    """As _OfCosts, but what it keeps are the gradients by the features."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        anchor: Tensor,
        engine: Any,
        problem: FeatureProblem,
        squares: Tensor,
        factors: tuple[float, Tensor],
    ) -> Tensor:
        problem = problem._replace(x=x, y=y)
        wanted = ctx.needs_input_grad[:2]
        loss, by_x, by_y = engine.directional.of_features(problem, squares, factors, *wanted)
        ctx.save_for_backward(loss == math.inf, anchor, by_x, by_y)  # a caller may change the loss
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        without_path, anchor, *by_features = ctx.saved_tensors
        grad = torch.where(without_path, 0, grad)[..., None, None]
        wanted = zip(by_features, ctx.needs_input_grad, strict=False)
        by_x, by_y = (anchored(by, anchor) * grad if due else None for by, due in wanted)
        return by_x, by_y, None, None, None, None, None


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


def _distortion(
    like: Tensor, shape: Sequence[int], lengths: Sequence[Tensor | None], alpha: float
) -> tuple[Tensor, Tensor]:
    """(i - j)^2 of the cells (N, M), and what their sum weighs in the loss, (*) or 0-d."""
    dtype, device = like.dtype, like.device
    i, j = (torch.arange(size, dtype=dtype, device=device) for size in shape)
    sizes = zip(shape, lengths, strict=True)
    n, m = (size if own is None else own.to(dtype) for size, own in sizes)
    area = n * m
    if not isinstance(area, Tensor):  # as a tensor it follows the sizes of other calls of a program
        area = torch.full((), area, dtype=torch.float64, device=device)
    elif not area.is_floating_point():  # sizes in a trace
        area = area.double()
    return (i[:, None] - j).square_(), ((1 - alpha) / area).to(device, dtype)


class DILATELoss(_AlignmentLoss):
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
        super().__init__(gamma, cost, reduction, backend)
        _check_gamma(gamma)
        self.alpha = _check_alpha(alpha)
        self.bandwidth = check_bandwidth(bandwidth)

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
        return f"alpha={self.alpha}, {super().extra_repr()}"

    def _settings(self) -> dict[str, object]:
        return {"bandwidth": self.bandwidth}
