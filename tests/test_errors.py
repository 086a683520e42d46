"""Bad arguments raise ValueError or TypeError, and the message names what was got and expected."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from softdtw_kernels import (
    S2DTWFunction,
    S2DTWLoss,
    SoftDTWFunction,
    SoftDTWLoss,
    cost_matrix,
    s2dtw,
    s2dtw_alignment,
    s2dtw_alignment_from_cost,
    s2dtw_from_cost,
    soft_dtw,
    soft_dtw_alignment,
    soft_dtw_alignment_from_cost,
    soft_dtw_barycenter,
    soft_dtw_divergence,
    soft_dtw_from_cost,
)

OF_FEATURES = [soft_dtw, s2dtw, soft_dtw_divergence, soft_dtw_alignment, s2dtw_alignment]
OF_COST = [
    soft_dtw_from_cost, s2dtw_from_cost, soft_dtw_alignment_from_cost, s2dtw_alignment_from_cost,
]  # fmt: skip
BANDED = [soft_dtw, soft_dtw_divergence, soft_dtw_alignment]
BANDED_OF_COST = [soft_dtw_from_cost, soft_dtw_alignment_from_cost]
REDUCED = [soft_dtw, s2dtw, soft_dtw_divergence]

X, Y, COST = torch.zeros(2, 4, 3), torch.zeros(2, 5, 3), torch.zeros(2, 4, 5)


def _raises(error: type[Exception], parts: list[str], call: Callable[[], Any]) -> None:
    """The error has this type and names every part: argument, what was got, what is expected."""
    with pytest.raises(error) as caught:
        call()
    for part in parts:
        assert part in str(caught.value), f"{part!r} is not in the message {str(caught.value)!r}"


@pytest.mark.parametrize("function", [*OF_FEATURES, cost_matrix])
@pytest.mark.parametrize(
    "x, y, error, parts",
    [
        (torch.zeros(3), Y, ValueError, ["x", "(3,)", "N, D"]),
        (X, torch.zeros(3), ValueError, ["y", "(3,)", "M, D"]),
        (torch.zeros(()), Y, ValueError, ["x", "()", "N, D"]),
        (X, torch.zeros(2, 5, 4), ValueError, ["(2, 4, 3)", "(2, 5, 4)"]),
        (X, torch.zeros(3, 5, 3), ValueError, ["(2, 4, 3)", "(3, 5, 3)", "broadcast"]),
        (torch.zeros(2, 0, 3), Y, ValueError, ["x", "(2, 0, 3)", "empty"]),
        (X, torch.zeros(2, 0, 3), ValueError, ["y", "(2, 0, 3)", "empty"]),
        (X[..., :0], Y[..., :0], ValueError, ["x", "(2, 4, 0)", "empty"]),
        (X.long(), Y.long(), TypeError, ["x", "int64", "float32"]),
        (X[0].to_sparse(), Y[0], TypeError, ["x", "sparse", "dense"]),
        (X, Y.bool(), TypeError, ["y", "bool", "float32"]),
        (X.cfloat(), Y.cfloat(), TypeError, ["x", "complex64", "float32"]),
        (X, Y.double(), TypeError, ["float32", "float64", "dtype"]),
        (X.half(), Y, TypeError, ["float16", "float32", "dtype"]),
        (X, Y.to("meta"), ValueError, ["cpu", "meta", "device"]),
        (X.tolist(), Y, TypeError, ["x", "list", "Tensor"]),
        (X, None, TypeError, ["y", "NoneType", "Tensor"]),
        (X.numpy(), Y, TypeError, ["x", "ndarray", "Tensor"]),
    ],
)
def test_features(
    function: Callable[..., Any], x: Any, y: Any, error: type[Exception], parts: list[str]
) -> None:
    _raises(error, parts, lambda: function(x, y))


@pytest.mark.parametrize("function", OF_COST)
@pytest.mark.parametrize(
    "cost, error, parts",
    [
        (torch.zeros(3), ValueError, ["cost", "(3,)", "N, M"]),
        (torch.zeros(2, 0, 3), ValueError, ["cost", "(2, 0, 3)", "empty"]),
        (torch.zeros(2, 3, 0), ValueError, ["cost", "(2, 3, 0)", "empty"]),
        (COST.int(), TypeError, ["cost", "int32", "float32"]),
        (COST[0].to_sparse(), TypeError, ["cost", "sparse", "dense"]),
        (COST.cdouble(), TypeError, ["cost", "complex128", "float32"]),
        ([[0.0]], TypeError, ["cost", "list", "Tensor"]),
    ],
)
def test_costs(
    function: Callable[..., Any], cost: Any, error: type[Exception], parts: list[str]
) -> None:
    _raises(error, parts, lambda: function(cost))


@pytest.mark.parametrize("function", [SoftDTWFunction, S2DTWFunction])
@pytest.mark.parametrize(
    "arguments, error, parts",
    [
        ((COST[:, :0], 1.0), ValueError, ["cost", "(2, 0, 5)", "empty"]),
        ((COST[0, 0], 1.0), ValueError, ["cost", "(5,)", "N, M"]),
        (([[0.0]], 1.0), TypeError, ["cost", "list", "Tensor"]),
        ((COST.half(), 1.0), TypeError, ["float16", "float32"]),
        ((COST, torch.ones(3)), ValueError, ["gamma", "(3,)"]),
        ((COST, 1.0, None, torch.tensor([1.0, 2.0])), TypeError, ["x_lengths", "float32"]),
        ((COST, 1.0, None, None, [1, 2, 3]), ValueError, ["y_lengths", "(3,)", "(2,)"]),
        ((COST, 1.0, None, None, [1, 9]), ValueError, ["y_lengths", "9", "1..5"]),
    ],
    ids=lambda a: str(a)[:40],
)
def test_the_functions_themselves(
    function: Any, arguments: tuple[Any, ...], error: type[Exception], parts: list[str]
) -> None:
    _raises(error, parts, lambda: function.apply(*arguments))


@pytest.mark.parametrize(
    "call, error, parts",
    [
        (lambda: SoftDTWFunction.apply(COST, 1.0, None, None, None, -1), ValueError, ["-1", "0"]),
        (lambda: SoftDTWFunction.apply(COST, 1.0, None, None, None, 1.5), TypeError, ["float"]),
        (lambda: SoftDTWFunction.apply(COST, 1.0, 0.5, None, None, 1), ValueError, ["bandwidth"]),
        (lambda: S2DTWFunction.apply(COST, 1.0, 0.5, None, None, 0), ValueError, ["origin_count"]),
    ],
)
def test_the_last_argument_of_the_functions(
    call: Callable[[], Any], error: type[Exception], parts: list[str]
) -> None:
    _raises(error, parts, call)


def _both(arguments: dict[str, Any]) -> list[tuple[Callable[..., Any], tuple[torch.Tensor, ...]]]:
    """Every function that takes all of these arguments, with its tensors."""
    if "bandwidth" in arguments:
        of_features, of_cost = BANDED, BANDED_OF_COST
    elif {"dummy_cost", "origin_count"} & set(arguments):
        of_features, of_cost = (
            [s2dtw, s2dtw_alignment],
            [s2dtw_from_cost, s2dtw_alignment_from_cost],
        )
    elif "reduction" in arguments:
        of_features, of_cost = REDUCED, [soft_dtw_from_cost, s2dtw_from_cost]
    else:
        of_features, of_cost = OF_FEATURES, OF_COST
    return [*((f, (X, Y)) for f in of_features), *((f, (COST,)) for f in of_cost)]


BAD_ARGUMENTS: list[tuple[dict[str, Any], type[Exception], list[str]]] = [
    ({"gamma": -1.0}, ValueError, ["gamma", "-1.0", "0"]),
    ({"gamma": math.nan}, ValueError, ["gamma", "nan", "finite"]),
    ({"gamma": math.inf}, ValueError, ["gamma", "inf", "finite"]),
    ({"gamma": torch.tensor(-2.0)}, ValueError, ["gamma", "-2.0", "0"]),
    ({"gamma": torch.tensor(math.nan)}, ValueError, ["gamma", "nan", "0"]),
    ({"gamma": torch.ones(7)}, ValueError, ["gamma", "(7,)", "0-d"]),
    ({"gamma": torch.tensor(1j)}, TypeError, ["gamma", "complex64", "real"]),
    ({"gamma": "small"}, TypeError, ["gamma", "str", "number"]),
    ({"gamma": None}, TypeError, ["gamma", "NoneType", "number"]),
    ({"gamma": np.ones(2)}, TypeError, ["gamma", "ndarray", "(2,)", "0-d"]),
    ({"gamma": np.complex128(1j)}, TypeError, ["gamma", "complex128", "number"]),
    ({"gamma": np.bool_(True)}, TypeError, ["gamma", "bool", "number"]),
    ({"gamma": 10**400}, ValueError, ["gamma", "finite"]),
    ({"dummy_cost": torch.ones(7)}, ValueError, ["dummy_cost", "(7,)", "0-d"]),
    ({"dummy_cost": math.nan}, ValueError, ["dummy_cost", "nan", "finite"]),
    ({"dummy_cost": "half"}, TypeError, ["dummy_cost", "str", "number"]),
    ({"origin_count": 0}, ValueError, ["origin_count", "0"]),
    ({"origin_count": torch.tensor(1.0)}, TypeError, ["origin_count", "Tensor", "number"]),
    ({"origin_count": "one"}, TypeError, ["origin_count", "str", "number"]),
    ({"bandwidth": -1}, ValueError, ["bandwidth", "-1", "0"]),
    ({"bandwidth": 1.5}, TypeError, ["bandwidth", "float", "int"]),
    ({"bandwidth": True}, TypeError, ["bandwidth", "bool", "int"]),
    ({"bandwidth": np.ones(2, int)}, TypeError, ["bandwidth", "ndarray", "int"]),
    ({"bandwidth": "wide"}, TypeError, ["bandwidth", "str", "int"]),
    ({"x_lengths": torch.tensor([0, 4])}, ValueError, ["x_lengths", "0", "1..4"]),
    ({"x_lengths": torch.tensor([5, 4])}, ValueError, ["x_lengths", "5", "1..4"]),
    ({"x_lengths": torch.tensor([-1, 4])}, ValueError, ["x_lengths", "-1", "1..4"]),
    ({"y_lengths": torch.tensor([5, 6])}, ValueError, ["y_lengths", "6", "1..5"]),
    ({"y_lengths": [5, 0]}, ValueError, ["y_lengths", "0", "1..5"]),
    ({"x_lengths": torch.tensor([4.0, 4.0])}, TypeError, ["x_lengths", "float32", "integers"]),
    ({"x_lengths": torch.tensor([True, True])}, TypeError, ["x_lengths", "bool", "integers"]),
    ({"y_lengths": torch.tensor([1, 2, 3])}, ValueError, ["y_lengths", "(3,)", "(2,)"]),
    ({"x_lengths": torch.tensor([[1, 2]])}, ValueError, ["x_lengths", "(1, 2)", "(2,)"]),
    ({"x_lengths": "ab"}, TypeError, ["x_lengths", "str", "integer"]),
    ({"x_lengths": b"ab"}, TypeError, ["x_lengths", "bytes", "integer"]),
    ({"reduction": "average"}, ValueError, ["reduction", "average", "mean", "sum", "none"]),
    ({"reduction": np.ones(2)}, ValueError, ["reduction", "mean", "sum", "none"]),
    ({"backend": np.ones(2)}, ValueError, ["backend", "numba", "reference"]),
    ({"backend": "tpu"}, ValueError, ["backend", "tpu", "numba", "reference"]),
    ({"backend": "cuda"}, ValueError, ["cuda", "cpu"]),
]


@pytest.mark.parametrize("arguments, error, parts", BAD_ARGUMENTS, ids=lambda a: str(a)[:40])
def test_other_arguments(
    arguments: dict[str, Any], error: type[Exception], parts: list[str]
) -> None:
    for function, tensors in _both(arguments):
        _raises(error, parts, lambda f=function, t=tensors: f(*t, **arguments))


@pytest.mark.parametrize("arguments, error, parts", BAD_ARGUMENTS[:35], ids=lambda a: str(a)[:40])
def test_the_reference_checks_them_too(
    arguments: dict[str, Any], error: type[Exception], parts: list[str]
) -> None:
    for function, tensors in _both(arguments):
        _raises(error, parts, lambda f=function, t=tensors: f(*t, backend="reference", **arguments))


def test_time_first_is_told_to_be_transposed() -> None:
    x, y = torch.rand(6, 4, 3), torch.rand(5, 4, 3)
    parts = ["(6, 4, 3)", "(5, 4, 3)", "if time comes first", "x.transpose(0, 1)"]
    for function in OF_FEATURES:
        _raises(ValueError, parts, lambda f=function: f(x, y))


@pytest.mark.parametrize("function", [*OF_FEATURES, cost_matrix])
@pytest.mark.parametrize(
    "cost, error, parts",
    [
        ("canberra", ValueError, ["cost", "canberra", "sqeuclidean", "negative_dot", "callable"]),
        (3, TypeError, ["cost", "int", "callable"]),
        (COST, TypeError, ["cost", "Tensor", "_from_cost"]),
        (lambda x, y: x @ y.mT[..., :-1], ValueError, ["(2, 4, 5)", "(2, 4, 4)"]),
        (lambda x, y: 1.0, TypeError, ["float", "Tensor"]),
        (lambda x, y: (x @ y.mT).to("meta"), ValueError, ["cpu", "meta", "device"]),
        (lambda x, y: (x @ y.mT).long(), TypeError, ["int64", "float"]),
    ],
)
def test_cost_argument(
    function: Callable[..., Any], cost: Any, error: type[Exception], parts: list[str]
) -> None:
    _raises(error, parts, lambda: function(X, Y, cost=cost))


@pytest.mark.parametrize("function", OF_FEATURES)
def test_pairwise_takes_two_batches(function: Callable[..., Any]) -> None:
    for x in (X[0], X[None]):
        _raises(
            ValueError,
            ["pairwise", str(tuple(x.shape)), "(A, N, D)", "(B, M, D)"],
            lambda x=x: function(x, Y, pairwise=True),
        )
    _raises(
        ValueError,
        ["x_lengths", "(3,)", "(2,)"],
        lambda: function(X, Y, pairwise=True, x_lengths=torch.tensor([1, 1, 1])),
    )


@pytest.mark.parametrize(
    "call, error, parts",
    [
        (lambda: SoftDTWLoss(gamma=-1.0), ValueError, ["gamma", "-1.0"]),
        (lambda: SoftDTWLoss(torch.ones(1).bool()), TypeError, ["gamma", "real", "bool"]),
        (lambda: S2DTWLoss(dummy_cost=np.ones(1)), TypeError, ["dummy_cost", "(1,)", "0-d"]),
        (lambda: SoftDTWLoss(cost="l3"), ValueError, ["cost", "l3", "sqeuclidean"]),
        (lambda: SoftDTWLoss(bandwidth=-2), ValueError, ["bandwidth", "-2"]),
        (lambda: SoftDTWLoss(reduction="max"), ValueError, ["reduction", "max", "mean"]),
        (lambda: SoftDTWLoss(backend="fast"), ValueError, ["backend", "fast", "numba"]),
        (lambda: S2DTWLoss(dummy_cost=math.inf), ValueError, ["dummy_cost", "inf"]),
        (lambda: S2DTWLoss(origin_count=-1), ValueError, ["origin_count", "-1"]),
    ],
)
def test_losses_check_their_settings_at_once(
    call: Callable[[], Any], error: type[Exception], parts: list[str]
) -> None:
    _raises(error, parts, call)


@pytest.mark.parametrize(
    "call, error, parts",
    [
        (lambda: soft_dtw_barycenter(torch.zeros(4, 3)), ValueError, ["sequences", "(4, 3)"]),
        (lambda: soft_dtw_barycenter([]), ValueError, ["sequences", "empty"]),
        (lambda: soft_dtw_barycenter(X, weights=[1.0]), ValueError, ["weights", "(1,)", "(2,)"]),
        (lambda: soft_dtw_barycenter(X, weights=[1.0, -1.0]), ValueError, ["weights", "0"]),
        (lambda: soft_dtw_barycenter(X, init=torch.zeros(3, 9)), ValueError, ["init", "(3, 9)"]),
        (lambda: soft_dtw_barycenter(X, init=0), ValueError, ["init", "0"]),
        (lambda: soft_dtw_barycenter(X, lengths=[1, 9]), ValueError, ["lengths", "9", "1..4"]),
        (lambda: soft_dtw_barycenter(X, lengths=[0, 4]), ValueError, ["lengths", "0", "1..4"]),
        (lambda: soft_dtw_barycenter(X, weights="ab"), TypeError, ["weights", "str", "2 numbers"]),
        (lambda: soft_dtw_barycenter(X, weights=[1j, 1]), TypeError, ["weights", "complex64"]),
        (lambda: soft_dtw_barycenter(X, init=X[0].numpy()), ValueError, ["init", "ndarray", "L"]),
        (lambda: soft_dtw_barycenter(X, init=2.5), ValueError, ["init", "2.5", "length"]),
        (lambda: soft_dtw_barycenter(X, max_iter=-1), ValueError, ["max_iter", "-1", "0"]),
        (lambda: soft_dtw_barycenter(X, max_iter=1.5), TypeError, ["max_iter", "float", "integer"]),
        (lambda: soft_dtw_barycenter(X, tol=-1.0), ValueError, ["tol", "-1.0", "0"]),
        (lambda: soft_dtw_barycenter(X, tol="a"), TypeError, ["tol", "str", "number"]),
        (lambda: soft_dtw_barycenter(None), TypeError, ["sequences", "NoneType", "(B, N, D)"]),
        (lambda: soft_dtw_barycenter(X, gamma=-1.0), ValueError, ["gamma", "-1.0"]),
        (lambda: soft_dtw_barycenter(X.long()), TypeError, ["sequences", "int64"]),
        (lambda: soft_dtw_barycenter([X[0], X[0, :, :2]]), ValueError, ["(4, 3)", "(4, 2)"]),
    ],
)
def test_barycenter(call: Callable[[], Any], error: type[Exception], parts: list[str]) -> None:
    _raises(error, parts, call)


def test_a_bad_length_inside_vmap_or_backward_never_reads_out_of_bounds() -> None:
    """The operator checks its values whatever wraps it."""
    with pytest.raises(ValueError, match="x_lengths"):
        torch.func.vmap(lambda c, n: soft_dtw_from_cost(c, x_lengths=n))(COST, torch.tensor([4, 9]))
    with pytest.raises(ValueError, match="gamma"):
        torch.func.vmap(lambda c, g: soft_dtw_from_cost(c, gamma=g))(
            COST, torch.tensor([1.0, -1.0])
        )


def test_the_operators_refuse_tensors_of_another_shape() -> None:
    """They index raw memory, and torch.ops is open to everybody."""
    operators = torch.ops.softdtw_kernels
    cost, item, number = torch.rand(2, 4, 5), torch.ones(2), torch.ones(2).double()
    limits = (None, None, None, None)
    with pytest.raises(ValueError, match="due"):  # a tangent of the cost
        operators.hessian_product(cost, number, *limits, item, item, number, None)
    with pytest.raises(ValueError, match="due"):
        operators.value(cost, cost.double(), *limits)
    with pytest.raises(ValueError, match="due"):
        operators.smooth_vjp(cost, number, None, None, 1.0, item)
    for other in (torch.rand(2, 3, 5), torch.rand(3, 3, 4)):
        with pytest.raises(ValueError, match="equal leading dimensions"):
            operators.squared_distances(torch.rand(2, 3, 4), other)
