"""Cost matrices between sequences: differences for the distances, one matrix product for the dot
types.

Costs ignore autocast: a cost rounded to bfloat16 is no longer the cost that the recursion is exact
for.
"""

from __future__ import annotations

from collections.abc import Callable
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
    check_flag,
    is_distance,
    same_shape,
)
from ._operators.distances import product, root, squared_distances, unit, without_autocast
from ._operators.manhattan import manhattan

CostFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]
CostName = Literal[
    "sqeuclidean", "euclidean", "manhattan", "cosine", "shifted_cosine", "negative_dot"
]
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
            distance 0), "manhattan" sum over d of |x_id - y_jd| (with subgradient 0 where they are
            equal), "cosine" 1 - cos, "shifted_cosine" -cos, "negative_dot" -<x_i, y_j>, or a
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
    where x is near y or far from the origin (as long as their squares, and those of the features
    for a cosine, are numbers of the dtype); the dot types are one matrix product; "manhattan" is
    plain torch, some calls a feature. Autocast is ignored. Differentiable twice, in forward mode
    too.

    >>> import torch
    >>> cost_matrix(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 0.0]]))
    tensor([[ 0.],
            [25.]])
    >>> cost_matrix(torch.randn(5, 4, 2), torch.randn(7, 6, 2), "cosine", pairwise=True).shape
    torch.Size([5, 7, 4, 6])

    Source: Cuturi and Blondel 2017, Section 2 ("sqeuclidean"); Ko et al. 2022, Section 3
    ("shifted_cosine").
    """
    pairwise = check_flag(pairwise, "pairwise")
    check_features(x, y, pairwise)
    check_cost(cost)
    x, y = computing_dtype(x, y)
    result = matrix(x, y, cost, pairwise, backends.select(backend, x))
    # The root keeps its result for the gradient; a caller may change what is returned.
    return result.clone() if cost == "euclidean" and result.requires_grad else result


def computing_dtype(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Half precision is computed in float32; two dtypes meet only under autocast: promoted."""
    dtype = x.dtype if x.dtype == y.dtype else torch.promote_types(x.dtype, y.dtype)
    if dtype in (torch.float16, torch.bfloat16):
        dtype = torch.float32
    return (x, y) if x.dtype == y.dtype == dtype else (x.to(dtype), y.to(dtype))


def matrix(x: Tensor, y: Tensor, cost: Cost, pairwise: bool, backend: str) -> Tensor:
    """The cost (*, N, M) of checked features; for all pairs (A, B, N, M), which may be a strided
    view.
    """
    rule = rule_of(cost)
    if not isinstance(rule, KernelCost):
        return _of_function(rule, x, y, pairwise)
    x, y = rule.prepare(x, y)
    make = _distances if is_distance(rule.kind) else _dot_cost
    costs = make(x, y, pairwise, backend)
    return costs if rule.finish is None else rule.finish(costs)


def _of_function(function: CostFunction, x: Tensor, y: Tensor, pairwise: bool) -> Tensor:
    if pairwise:
        x, y = x[:, None], y[None]
    shape = (*broadcast_batch(x, y), x.shape[-2], y.shape[-2])
    return _checked_result(_called(function, x, y, shape), shape, x.device)


def _called(function: CostFunction, x: Tensor, y: Tensor, shape: tuple[int, ...]) -> Any:
    """What a cost function returns, or an error that says what a user's was called with.

    Where tracing or lack of memory ends a call, others have to know by the error itself.
    """
    if torch.compiler.is_compiling() or any(function is named for named in NAMED.values()):
        return without_autocast(function, x, y)
    try:
        return without_autocast(function, x, y)
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
    if result.dim() < 2 or not (
        same_shape(result.shape[-2:], shape[-2:]) and same_shape(result.shape, shape)
    ):
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


def _unchanged(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x, y


def _units(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return unit(x), unit(y)


def _units_and_one(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Their negative dot product is 1 - cos: one more feature, in the same product."""
    x, y = _units(x, y)
    return pad(x, (0, 1), value=1.0), pad(y, (0, 1), value=-1.0)


@dataclass(frozen=True)
class KernelCost:
    """A cost that kernels compute: of prepared features, of one of `_checks.KINDS`, then perhaps
    finished cell by cell, which only a cost matrix in memory can be.
    """

    kind: str
    prepare: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = _unchanged
    finish: Callable[[Tensor], Tensor] | None = None


# All that is known of a cost by its name, here and nowhere else. A name may also stand for a
# function, in plain torch, of what `cost_matrix` gives to a callable cost.
NAMED: dict[str, KernelCost | CostFunction] = {
    "sqeuclidean": KernelCost("sqeuclidean"),
    "euclidean": KernelCost("sqeuclidean", finish=root),
    "manhattan": manhattan,
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
