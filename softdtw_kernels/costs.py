"""Cost matrices between sequences: differences for the distances, one matrix product for the dot
types.

Costs ignore autocast: a cost rounded to bfloat16 is no longer the cost that the recursion is exact
for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import pad

from . import _backends as backends
from . import _reference as reference
from ._checks import (
    DTYPES,
    Backend,
    broadcast_batch,
    check_features,
    is_autocast,
    is_distance,
    same_shape,
)
from ._operators import kernels
from ._operators.function import (
    BatchedFunction,
    EagerFunction,
    choose,
    derivative,
    forward_rule,
    zeros_if_none,
)

CostFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]
CostName = Literal["sqeuclidean", "euclidean", "cosine", "shifted_cosine", "negative_dot"]
Cost: TypeAlias = CostName | CostFunction


def cost_matrix(
    x: Tensor,
    y: Tensor,
    cost: Cost = "sqeuclidean",
    *,
    pairwise: bool = False,
    backend: Backend | None = None,
) -> Tensor:
    """The costs between all frames of two sequences.

        C[i, j] = cost(x_i, y_j)

    Args:
        x: (*, N, D), float32 or float64; float16 and bfloat16 are computed in float32.
        y: (*, M, D); the leading dimensions broadcast with those of x.
        cost: "sqeuclidean" |x_i - y_j|^2 (no factor 1/2), "euclidean" (with subgradient 0 at
            distance 0), "cosine" 1 - cos, "shifted_cosine" -cos, "negative_dot" -<x_i, y_j>, or a
            function of broadcastable (..., N, D) and (..., M, D) that returns (..., N, M). The
            cosine with a zero vector is 0, with gradient 0.
        pairwise: all sequences of x (A, N, D) with all of y (B, M, D).
        backend: None chooses by device; "numba" (CPU), "cuda", or "reference" (plain torch).

    Returns:
        (*, N, M), or (A, B, N, M) for all pairs, possibly a strided view.

    Raises:
        TypeError, ValueError: for arguments of another type, dtype, shape or name.
        RuntimeError: where a cost function fails, from its own error.
        ImportError: for distances of CUDA tensors without CuPy.

    Costs O(N M D) time and the memory of the result: distances are sums of differences, exact
    where x is near y or far from the origin; the dot types are one matrix product. Autocast is
    ignored. Differentiable twice, in forward mode too.

    >>> import torch
    >>> cost_matrix(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 0.0]]))
    tensor([[ 0.],
            [25.]])
    >>> cost_matrix(torch.randn(5, 4, 2), torch.randn(7, 6, 2), "cosine", pairwise=True).shape
    torch.Size([5, 7, 4, 6])

    Source: Cuturi and Blondel 2017, Section 2 ("sqeuclidean"); Ko et al. 2022, Section 3
    ("shifted_cosine").
    """
    check_features(x, y, pairwise)
    check_cost(cost)
    x, y = computing_dtype(x, y)
    result = from_features(x, y, cost, pairwise, backends.select(backend, x))
    # The root keeps its result for the gradient; a caller may change what is returned.
    return result.clone() if cost == "euclidean" and result.requires_grad else result


def computing_dtype(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Half precision is computed in float32; two dtypes meet only under autocast: promoted."""
    dtype = x.dtype if x.dtype == y.dtype else torch.promote_types(x.dtype, y.dtype)
    if dtype in (torch.float16, torch.bfloat16):
        dtype = torch.float32
    return x.to(dtype), y.to(dtype)


def from_features(x: Tensor, y: Tensor, cost: Cost, pairwise: bool, backend: str) -> Tensor:
    """The cost (*, N, M) of checked features; for all pairs (A, B, N, M), which may be a strided
    view.
    """
    rule = rule_of(cost)
    if not isinstance(rule, KernelCost):
        return _of_function(rule, x, y, pairwise)
    x, y = rule.prepare(x, y)
    make = _distances if is_distance(rule.kind) else _dot_cost
    matrix = make(x, y, pairwise, backend)
    return matrix if rule.finish is None else rule.finish(matrix)


def _of_function(function: CostFunction, x: Tensor, y: Tensor, pairwise: bool) -> Tensor:
    if pairwise:
        x, y = x[:, None], y[None]
    shape = (*broadcast_batch(x, y), x.shape[-2], y.shape[-2])
    return _checked_result(_called(function, x, y, shape), shape, x.device)


def _called(function: CostFunction, x: Tensor, y: Tensor, shape: tuple[int, ...]) -> Any:
    """What a cost function returns, or an error that says what it was called with.

    Where tracing or lack of memory ends a call, others have to know by the error itself.
    """
    if torch.compiler.is_compiling():
        return _without_autocast(function, x, y)
    try:
        return _without_autocast(function, x, y)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise RuntimeError(
            f"the cost function failed: {type(error).__name__}: {error}\n"
            f"It was called with tensors of shapes {tuple(x.shape)} and {tuple(y.shape)}, and must "
            f"return one of shape {shape}: count dimensions from the end, (..., N, D) and "
            "(..., M, D) to (..., N, M), since those in front broadcast"
        ) from error


def _distances(x: Tensor, y: Tensor, pairwise: bool, backend: str) -> Tensor:
    if pairwise:
        x, y = x[:, None], y[None]
    if x.dim() != y.dim():  # the operators count dimensions from the front
        dims = max(x.dim(), y.dim())
        x, y = x[(None,) * (dims - x.dim())], y[(None,) * (dims - y.dim())]
    return reference.squared_distances(x, y) if backend == "reference" else squared_distances(x, y)


def repeat_first_beyond(x: Tensor, lengths: Tensor | None) -> Tensor:
    """x (*, N, D) with the first frame in place of the padding beyond the lengths.

    The kernels give padding the gradient 0, but 0 times a padded NaN is NaN in the derivative of
    the cost. A frame of the sequence itself is at no distance where a cost could be less
    differentiable than it is anyway.
    """
    if lengths is None:
        return x
    valid = torch.arange(x.shape[-2], device=x.device) < lengths[..., None]
    return torch.where(valid[..., None], x, x[..., :1, :])


def _checked_result(result: Any, shape: tuple[int, ...], device: torch.device) -> Tensor:
    if not isinstance(result, Tensor):
        raise TypeError(
            f"the cost function must return a torch.Tensor, got {type(result).__name__}"
        )
    if result.is_nested or result.layout != torch.strided:
        what = "a nested one" if result.is_nested else f"the layout {result.layout}"
        raise TypeError(f"the cost function must return a dense tensor, got {what}")
    if result.dtype not in DTYPES:
        raise TypeError(
            "the cost function must return a tensor of float32, float64, float16 or bfloat16, "
            f"got {result.dtype}"
        )
    if result.dim() < 2 or result.shape[-2:] != shape[-2:] or result.shape != shape:
        raise ValueError(
            f"the cost function must return a tensor of shape {shape}, got {tuple(result.shape)}"
        )
    if result.device != device:
        raise ValueError(
            f"the cost function must return a tensor on {device}, the device of x and y, "
            f"got one on {result.device}"
        )
    return result.float() if result.dtype in (torch.float16, torch.bfloat16) else result


def _dot_cost(x: Tensor, y: Tensor, pairwise: bool, backend: str) -> Tensor:
    y = -y
    if not pairwise:
        if not same_shape(x.shape[:-2], y.shape[:-2]):
            batch = broadcast_batch(x, y)
            x, y = x.expand(*batch, *x.shape[-2:]), y.expand(*batch, *y.shape[-2:])
        return product(x, y)
    all_pairs = product(x.flatten(0, 1), y.flatten(0, 1))
    return all_pairs.view(*x.shape[:2], *y.shape[:2]).transpose(1, 2)


class _UnitTwin(BatchedFunction):
    """x / |x| and 1 / |x| of x (*, N, D), the norm in float64, whose squares do not overflow.

    A zero vector stays 0; it counts as infinitely long, so that all its derivatives are 0.
    """

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float64)
        is_zero = norm.detach().reciprocal() == math.inf
        # Masked before, so that the derivatives of what is masked afterwards are finite.
        nonzero = torch.where(is_zero, 1.0, x)
        norm = torch.linalg.vector_norm(nonzero, dim=-1, keepdim=True, dtype=torch.float64)
        inverse = torch.where(is_zero, 0.0, norm.reciprocal())
        return _in_dtype(x * inverse, x.dtype), inverse

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*output)
        ctx.save_for_forward(*output)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, g_inverse: Tensor | None) -> Tensor | None:
        unit, inverse = ctx.saved_tensors
        by_x = None
        if g is not None:
            by_x = inverse * (g - unit * (unit * g).sum(-1, keepdim=True))
        if g_inverse is not None:
            by_norm = g_inverse * inverse.square() * unit
            by_x = -by_norm if by_x is None else by_x - by_norm
        return None if by_x is None else by_x.to(unit.dtype)


class _Unit(EagerFunction, _UnitTwin):
    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float64)
        inverse.reciprocal_()
        inverse.masked_fill_(inverse == math.inf, 0)
        return _in_dtype(x * inverse, x.dtype), inverse

    @staticmethod
    @forward_rule
    def jvp(ctx: Any, saved: Sequence[Tensor], tangent: Tensor) -> tuple[Tensor, Tensor]:
        unit, inverse = saved
        along = (unit * tangent).sum(-1, keepdim=True)
        by_unit = (inverse * (tangent - unit * along)).to(unit.dtype)
        return by_unit, -inverse.square() * along


def _in_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """As x.to(dtype): torch 2.11 compiles a gradient of 0 where the last thing in a forward is a
    `to` that changes nothing.
    """
    return x if x.dtype == dtype else x.to(dtype)


def _unit(x: Tensor) -> Tensor:
    return choose(_Unit, _UnitTwin, (x,))[0]


class _ProductTwin(BatchedFunction):
    """x y^T without autocast, forward and backward."""

    @staticmethod
    def forward(x: Tensor, y: Tensor) -> Tensor:
        return _product(x, y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        x, y = ctx.saved_tensors
        needs = ctx.needs_input_grad
        return (
            derivative(_Product, _product, (g, y.mT)) if needs[0] else None,
            derivative(_Product, _product, (g.mT, x.mT)) if needs[1] else None,
        )


class _Product(EagerFunction, _ProductTwin):
    @staticmethod
    @forward_rule
    def jvp(ctx: Any, saved: Sequence[Tensor], *tangents: Any) -> Tensor:
        x, y = saved
        a, b = zeros_if_none(tangents[0], x), zeros_if_none(tangents[1], y)
        return _Product.apply(a, y) + _Product.apply(x, b)


def product(x: Tensor, y: Tensor) -> Tensor:
    """x y^T of equal leading dimensions, differentiable."""
    return choose(_Product, _ProductTwin, (x, y))


def _product(x: Tensor, y: Tensor) -> Tensor:
    return _without_autocast(torch.matmul, x, y.mT)


def _without_autocast(function: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    if not is_autocast(a.device):
        return function(a, b)
    with torch.autocast(a.device.type, enabled=False):
        return function(a, b)


class _SquaredDistancesVjp(EagerFunction):
    """2 sum_j g_ij (x_i - y_j) and 2 sum_i g_ij (y_j - x_i): bilinear in g and the features."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor]:
        return kernels.squared_distances_vjp(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:3])
        ctx.save_for_forward(*inputs[:3])
        ctx.wanted = inputs[3:]

    @staticmethod
    def backward(ctx: Any, a: Tensor, b: Tensor) -> tuple[Any, ...]:
        x, y, g = ctx.saved_tensors
        with_x, with_y = ctx.wanted
        a, b = a if with_x else torch.zeros_like(x), b if with_y else torch.zeros_like(y)
        by_x, by_y = _SquaredDistancesVjp.apply(a, b, g, True, True)
        return by_x, by_y, _bilinear(x, y, a, b), None, None

    @staticmethod
    @forward_rule
    def jvp(ctx: Any, saved: Sequence[Tensor], *tangents: Any) -> tuple[Tensor, Tensor]:
        x, y, g = saved
        a, b = zeros_if_none(tangents[0], x), zeros_if_none(tangents[1], y)
        result = _SquaredDistancesVjp.apply(a, b, g, *ctx.wanted)
        if tangents[2] is None:
            return result
        by_g = _SquaredDistancesVjp.apply(x, y, tangents[2], *ctx.wanted)
        return result[0] + by_g[0], result[1] + by_g[1]


class _SquaredDistancesTwin(BatchedFunction):
    """|x_i - y_j|^2 of x (*x, N, D) and y (*y, M, D), whose leading dimensions broadcast."""

    @staticmethod
    def forward(x: Tensor, y: Tensor) -> Tensor:
        batch = x.shape[:-2]
        if not same_shape(batch, y.shape[:-2]):
            batch = torch.broadcast_shapes(batch, y.shape[:-2])
            x, y = x.expand(*batch, *x.shape[-2:]), y.expand(*batch, *y.shape[-2:])
        return kernels.squared_distances(x, y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        needs = ctx.needs_input_grad
        args = *ctx.saved_tensors, g, *needs
        grads = derivative(_SquaredDistancesVjp, kernels.squared_distances_vjp, args)
        return tuple(grad if need else None for grad, need in zip(grads, needs, strict=True))

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, int]:
        x, y = (
            arg[None] if dim is None else arg.movedim(dim, 0)
            for arg, dim in zip(args, in_dims, strict=True)
        )
        return cls.apply(x, y), 0


class _SquaredDistances(EagerFunction, _SquaredDistancesTwin):
    @staticmethod
    @forward_rule
    def jvp(ctx: Any, saved: Sequence[Tensor], *tangents: Any) -> Tensor:
        x, y = saved
        return _bilinear(x, y, zeros_if_none(tangents[0], x), zeros_if_none(tangents[1], y))


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """`ops.squared_distances` of broadcastable x and y with equally many dimensions,
    differentiable.
    """
    return choose(_SquaredDistances, _SquaredDistancesTwin, (x, y))


def squared_distances_vjp(
    x: Tensor, y: Tensor, g: Tensor, with_x: bool, with_y: bool
) -> tuple[Tensor, Tensor]:
    """`ops.squared_distances_vjp`, differentiable; not for torch.compile."""
    return _SquaredDistancesVjp.apply(x, y, g, with_x, with_y)


def _bilinear(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """2 <x_i - y_j, a_i - b_j>, the tangent of |x_i - y_j|^2 along (a, b), as one product in
    float64.
    """
    dtype = x.dtype
    x, y, a, b = x.double(), y.double(), a.double(), b.double()
    own_x, own_y = (x * a).sum(-1, keepdim=True), (y * b).sum(-1, keepdim=True)
    left = torch.cat((x, a, own_x, torch.ones_like(own_x)), dim=-1)
    right = torch.cat((-b, -y, torch.ones_like(own_y), own_y), dim=-1)
    return (2 * (left @ right.mT)).to(dtype)


class _RootTwin(BatchedFunction):
    """The square root with derivative 0 at 0, in second order too."""

    @staticmethod
    def forward(squared: Tensor) -> Tensor:
        is_zero = squared == 0
        # Masked before too, so that the derivative of what is masked afterwards is finite.
        return torch.where(is_zero, 0.0, torch.where(is_zero, 1.0, squared).sqrt())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * _half_inverse(ctx.saved_tensors[0])


class _RootFunction(EagerFunction, _RootTwin):
    @staticmethod
    def forward(squared: Tensor) -> Tensor:
        return squared.sqrt()

    @staticmethod
    @forward_rule
    def jvp(ctx: Any, saved: Sequence[Tensor], tangent: Tensor) -> Tensor:
        return tangent * _half_inverse(saved[0])


def _half_inverse(root: Tensor) -> Tensor:
    is_zero = root == 0
    # The inner mask keeps the derivative of the quotient finite where the outer one hides it.
    return torch.where(is_zero, 0, 0.5 / torch.where(is_zero, 1, root))


def _root(squared: Tensor) -> Tensor:
    return choose(_RootFunction, _RootTwin, (squared,))


def _unchanged(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x, y


def _units(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return _unit(x), _unit(y)


def _units_and_one(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Their negative dot product is 1 - cos: one more feature, in the same product."""
    x, y = _units(x, y)
    return pad(x, (0, 1), value=1.0), pad(y, (0, 1), value=-1.0)


@dataclass(frozen=True)
class KernelCost:
    """A cost that kernels compute: of prepared features, of one of `checks.KINDS`, then perhaps
    finished cell by cell, which only a cost matrix in memory can be.
    """

    kind: str
    prepare: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = _unchanged
    finish: Callable[[Tensor], Tensor] | None = None


# All that is known of a cost by its name, here and nowhere else. A name may also stand for a
# function, in plain torch, of what `cost_matrix` gives to a callable cost.
NAMED: dict[str, KernelCost | CostFunction] = {
    "sqeuclidean": KernelCost("sqeuclidean"),
    "euclidean": KernelCost("sqeuclidean", finish=_root),
    "cosine": KernelCost("negative_dot", _units_and_one),
    "shifted_cosine": KernelCost("negative_dot", _units),
    "negative_dot": KernelCost("negative_dot"),
}


def check_cost(cost: Any) -> None:
    """A name of the table or a callable."""
    if isinstance(cost, Tensor):
        raise TypeError(
            "cost must be a name or a callable, got a Tensor; a cost matrix goes to the functions "
            "that end in _from_cost"
        )
    if isinstance(cost, str):
        if cost not in NAMED:
            raise ValueError(f"cost must be one of {tuple(NAMED)} or a callable, got {cost!r}")
    elif not callable(cost):
        raise TypeError(
            f"cost must be one of {tuple(NAMED)} or a callable, got {type(cost).__name__}"
        )


def rule_of(cost: Cost) -> KernelCost | CostFunction:
    """The entry of a name, or the function that is the cost itself."""
    check_cost(cost)
    return NAMED[cost] if isinstance(cost, str) else cost


def fused_rule(cost: Cost) -> KernelCost | None:
    """The entry of a cost that kernels can compute cell by cell from features, else None."""
    rule = rule_of(cost)
    return rule if isinstance(rule, KernelCost) and rule.finish is None else None
