"""The torch.library operators (namespace `softdtw_kernels`), the seam between the public functions
and the kernels.

`*` is any number of leading dimensions, to which every batch tensor is already expanded (stride 0
allowed):

    value(cost (*, N, M), gamma (*), dummy (*)?, x_lengths (*)?, y_lengths (*)?, bandwidth?)
        -> value (*)
    gradient(.., grad_value (*), with_parameters)
        -> grad_cost (*, N, M), grad_gamma (*), grad_dummy (*); the last two have meaningless
           values unless with_parameters is set; without a dummy cost the last one is then 0
    value_and_state(.. of value) -> value (*), state
    gradient_from_state(.. of value, state, grad_value (*), with_parameters) -> as gradient
        (engines may return None in place of meaningless values)
        of the same arguments on the same device: the bits of value and gradient, without sweeping
        forward twice. The state is bytes (K) of a layout that only the backend knows, empty where
        it keeps nothing, and is only read. Backends that gain nothing have neither of the two.
    hessian_product(.., grad_value (*), tangent_cost (*, N, M), tangent_gamma (*),
                    tangent_dummy (*)?)
        -> derivative of the value along the tangents (*), and grad_value times the derivative of
           its gradient along them: (*, N, M), (*), (*)
    smooth(cost, gamma, x_lengths?, y_lengths?, origin_count) -> (*, N, M)
    smooth_vjp(.., grad_s (*, N, M)) -> grad_cost (*, N, M), grad_gamma (*)
    smoothed_value(cost, gamma, dummy?, x_lengths?, y_lengths?, origin_count) -> value (*)
    smoothed_gradient(.., grad_value (*), with_parameters) -> as gradient
        of smoothing, then the lattice: in one kernel where a backend has one
    squared_distances(x (*, N, D), y (*, M, D)) -> (*, N, M)
    squared_distances_vjp(x, y, g (*, N, M), with_x, with_y) -> grad_x, grad_y
        x and y broadcast here, and their gradients have their own shapes (without any feature
        where a gradient is not wanted)
    fused_value(x (*, N, D), y (*, M, D), gamma (*), x_lengths (*)?, y_lengths (*)?, bandwidth?,
                kind) -> value (*)
    fused_gradient(.., grad_value (*), with_x, with_y, with_gamma)
        -> grad_x (*, N, D), grad_y (*, M, D), grad_gamma (*)
        of the costs "sqeuclidean" or "negative_dot" of x and y, which CUDA never stores; elsewhere
        they are compositions of the operators above; again no feature where no gradient is wanted,
        and grad_gamma may then hold anything
    fused_value_and_state(.. of fused_value) -> value (*), state
    fused_gradient_from_state(.. of fused_value, state, grad_value (*), with_x, with_y, with_gamma)
        -> as fused_gradient; of the state holds what is said above
    monotonic_sum(log_probs (*, N, M), x_lengths (*)?, y_lengths (*)?, with_expected)
        -> value (*), expected (*, N, M), or (*, 0, 0) if it is not wanted
    monotonic_product(.. of log_probs and lengths, tangent (*, N, M)) -> (*, N, M)
        the derivative of the expected visits along the tangent
    monotonic_path(.. of log_probs and lengths) -> (*, N, M) of 0 and 1
        of the alignments in which each frame emits one token; in plain torch where an engine has
        no kernels for them
    pattern_value(cost, gamma, warp (*), skip (*), x_lengths?, y_lengths?, bandwidth?, repeat,
                  open_begin, open_end) -> value (*)
    pattern_gradient(.., grad_value (*), with_parameters)
        -> grad_cost (*, N, M), grad_gamma (*), grad_warp (*), grad_skip (*)
    pattern_hessian_product(.., grad_value (*), tangent_cost (*, N, M), tangent_gamma (*),
                            tangent_warp (*), tangent_skip (*))
        -> as hessian_product, of these four
        of the recursion in `_pattern`; where an engine has no kernels for it, of problems that are
        plain but for the cost of warping

The cost is float32 or float64 of any strides and is never copied here, unless it has more than two
leading dimensions (those of vmap, say) that cannot be viewed as two: backends see at most two.
Derivatives in the cost have its strides. gamma, dummy and their derivatives are float64, the
lengths int64. gamma and dummy may be a number in host memory, expanded, beside costs or features on
a CUDA device. With a dummy cost the lattice is that of weak alignment,
(2N + 1) x (2M + 1), which has no band: a dummy cost and a bandwidth together raise ValueError.

The first arguments are the fields of a tuple of `_problem`, which the engines take whole: they have
functions of these names, see `_backends.Engine`. CPU tensors go to `_cpu.operators` and CUDA
tensors to `_cuda.operators`, each imported at its first call. `derivatives` gives the operators
their derivatives.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable
from typing import Any, NamedTuple, get_type_hints

import torch
from torch import Tensor

from .. import _backends as backends
from .. import _monotonic_rows as rows
from .._checks import check_lattice, is_distance
from .._pattern import check_no_band, check_sides
from .._problem import (
    FeatureProblem,
    Features,
    Monotonic,
    PatternProblem,
    Problem,
    SmoothedProblem,
    Smoothing,
)
from . import shapes

# Schemas, in the terms of torch, of what is annotated in `_problem`.
_TYPES: dict[Any, str] = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    int | None: "SymInt?",
    float: "float",
    str: "str",
}
_ONE, _TWO, _THREE = "Tensor", "(Tensor, Tensor)", "(Tensor, Tensor, Tensor)"
_GRADIENT = "Tensor grad_value, bool with_parameters"
_FUSED_GRADIENT = "Tensor grad_value, bool with_x, bool with_y, bool with_gamma"


class Operator(NamedTuple):
    takes: Any  # one of the tuples of `_problem`, whose fields come first
    rest: str  # the arguments behind them
    returns: str
    fake: Callable[..., Any]  # the results without values

    @property
    def schema(self) -> str:
        fields = [f"{_TYPES[kind]} {name}" for name, kind in get_type_hints(self.takes).items()]
        return f"({', '.join([*fields, *([self.rest] if self.rest else [])])}) -> {self.returns}"

    @property
    def names(self) -> list[str]:
        """Of all arguments."""
        return re.findall(r"(\w+)(?:,|\))", self.schema.split(" ->")[0])

    def grouped(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """As the engines take them: features alone are not worth a tuple."""
        if self.takes is Features:
            return args
        count = len(self.takes._fields)
        return self.takes(*args[:count]), *args[count:]


OPERATORS = {
    "value": Operator(Problem, "", _ONE, shapes.value),
    "gradient": Operator(Problem, _GRADIENT, _THREE, shapes.gradient),
    "value_and_state": Operator(Problem, "", _TWO, shapes.value_and_state),
    "gradient_from_state": Operator(Problem, f"Tensor state, {_GRADIENT}", _THREE, shapes.gradient),
    "hessian_product": Operator(
        Problem,
        "Tensor grad_value, Tensor tangent_cost, Tensor tangent_gamma, Tensor? tangent_dummy",
        "(Tensor, Tensor, Tensor, Tensor)",
        shapes.hessian_product,
    ),
    "smooth": Operator(Smoothing, "", _ONE, shapes.smooth),
    "smooth_vjp": Operator(Smoothing, "Tensor grad_s", _TWO, shapes.smooth_vjp),
    "smoothed_value": Operator(SmoothedProblem, "", _ONE, shapes.value),
    "smoothed_gradient": Operator(SmoothedProblem, _GRADIENT, _THREE, shapes.gradient),
    "squared_distances": Operator(Features, "", _ONE, shapes.squared_distances),
    "squared_distances_vjp": Operator(
        Features, "Tensor g, bool with_x, bool with_y", _TWO, shapes.squared_distances_vjp
    ),
    "fused_value": Operator(FeatureProblem, "", _ONE, shapes.value),
    "fused_gradient": Operator(FeatureProblem, _FUSED_GRADIENT, _THREE, shapes.fused_gradient),
    "fused_value_and_state": Operator(FeatureProblem, "", _TWO, shapes.value_and_state),
    "fused_gradient_from_state": Operator(
        FeatureProblem, f"Tensor state, {_FUSED_GRADIENT}", _THREE, shapes.fused_gradient
    ),
    "monotonic_sum": Operator(Monotonic, "bool with_expected", _TWO, shapes.monotonic_sum),
    "monotonic_product": Operator(Monotonic, "Tensor tangent", _ONE, shapes.monotonic),
    "monotonic_path": Operator(Monotonic, "", _ONE, shapes.monotonic),
    "pattern_value": Operator(PatternProblem, "", _ONE, shapes.value),
    "pattern_gradient": Operator(
        PatternProblem, _GRADIENT, "(Tensor, Tensor, Tensor, Tensor)", shapes.pattern_gradient
    ),
    "pattern_hessian_product": Operator(
        PatternProblem,
        "Tensor grad_value, Tensor tangent_cost, Tensor tangent_gamma, Tensor tangent_warp, "
        "Tensor tangent_skip",
        "(Tensor, Tensor, Tensor, Tensor, Tensor)",
        shapes.pattern_product,
    ),
}
# What may be a number in host memory; see `is_number`.
NUMBERS = ("gamma", "dummy", "warp", "skip")
# Shaped like the cost; other tensors have an entry an item.
MATRICES = ("tangent_cost", "grad_s", "tangent")


def _check_costs(name: str, args: tuple[Any, ...]) -> None:
    """The kernels index raw memory: a tensor of another shape must not reach them."""
    cost = args[0]
    if cost.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"the operators take costs of float32 or float64, got {cost.dtype}; convert with "
            "cost.float()"
        )
    if OPERATORS[name].takes is Problem:
        check_lattice(args[2], args[5])
    elif OPERATORS[name].takes is PatternProblem:
        pattern = PatternProblem(*args[: len(PatternProblem._fields)])
        check_sides(pattern.repeat, pattern.open_begin, pattern.open_end)
        check_no_band(pattern.open_begin, pattern.open_end, pattern.bandwidth)
    shape, batch, device = cost.shape, cost.shape[:-2], cost.device
    for argument, tensor in zip(_NAMES[name], args, strict=True):
        if not isinstance(tensor, Tensor) or tensor is cost:
            continue
        expected = shape if argument in MATRICES else batch
        if argument == "state":
            _check_state(tensor)
        elif tensor.shape != expected:
            raise ValueError(
                f"{name} takes costs (*, N, M), here {tuple(shape)}, and tensors expanded to "
                f"(*) or, of derivatives in the cost, (*, N, M); got {tuple(tensor.shape)} where "
                f"{tuple(expected)} is due"
            )
        if tensor.device != device and not (argument in NUMBERS and is_number(tensor)):
            raise ValueError(
                f"the cost is on {device}, another tensor of the same call on {tensor.device}"
            )


def is_number(parameter: Tensor) -> bool:
    """Of NUMBERS: one for all items, in host memory, as CUDA kernels take it."""
    of_items = zip(parameter.shape, parameter.stride(), strict=True)
    one = not any(n > 1 and stride for n, stride in of_items)
    return one and parameter.device.type == "cpu" and parameter.dtype == torch.float64


def _check_state(state: Tensor) -> None:
    if not _is_state(state):
        raise ValueError(f"a state is contiguous uint8 (K), got {state.dtype} {tuple(state.shape)}")


def _is_state(tensor: Tensor) -> bool:
    """No other tensor of a call is one of bytes."""
    return tensor.dtype == torch.uint8 and tensor.dim() == 1 and tensor.is_contiguous()


def check_features(name: str, args: tuple[Any, ...]) -> None:
    """As `_check_costs`, of features with equal leading dimensions."""
    x, y = args[:2]
    if x.dtype not in (torch.float32, torch.float64) or y.dtype != x.dtype:
        raise TypeError(
            f"the operators take features of float32 or float64, got {x.dtype} and {y.dtype}"
        )
    if x.shape[:-2] != y.shape[:-2] or x.shape[-1] != y.shape[-1]:
        raise ValueError(
            "the operators take x (*, N, D) and y (*, M, D) of equal leading dimensions, "
            f"got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    devices = {x.device, y.device}
    for argument, value in zip(_NAMES[name], args, strict=True):
        if argument == "kind":
            is_distance(value)  # or raises
        if argument in ("x", "y") or not isinstance(value, Tensor):
            continue
        if argument == "state":
            _check_state(value)
        elif value.shape != x.shape[:-2]:
            raise ValueError(
                f"the operators take tensors expanded to the leading dimensions "
                f"{tuple(x.shape[:-2])} of the features, got {tuple(value.shape)}"
            )
        if argument != "gamma" or not is_number(value):
            devices.add(value.device)
    if len(devices) > 1:
        raise ValueError(f"all tensors of a call must be on one device, got {devices}")


def check(name: str, args: tuple[Any, ...]) -> None:
    """Of a direct call: what the operators check of arguments."""
    if OPERATORS[name].takes not in (Features, FeatureProblem):
        _check_costs(name, args)
    elif name != "squared_distances_vjp":  # the gradient of distances is of features that broadcast
        check_features(name, args)


def on_costs(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel of an operator that a function does on any device."""
    return _on_costs(name, lambda: types.SimpleNamespace(**{name: function}))


def _on_costs(name: str, engine: Callable[[], Any]) -> Callable[..., Any]:
    operator = OPERATORS[name]
    takes, count = operator.takes, len(operator.takes._fields)

    def run(*args: Any) -> Any:
        _check_costs(name, args)
        kernel = getattr(engine(), name)
        cost = args[0]
        if cost.dim() <= 4:
            return _whole(kernel(takes(*args[:count]), *args[count:]), cost)
        batch = cost.shape[:-2]
        folded = batch[0], batch[1:].numel()
        few = tuple(_replace_batch(arg, len(batch), folded) for arg in args)
        result = _whole(kernel(*operator.grouped(few)), few[0])
        if isinstance(result, Tensor):
            return _unfolded(result, batch)
        return tuple(_unfolded(part, batch) for part in result)

    return run


def _whole(result: Any, cost: Tensor) -> Any:
    """A result, with anything where an engine gives nothing, as nobody asked for it."""
    if not isinstance(result, tuple):
        return result
    return tuple(shapes.item(cost) if part is None else part for part in result)


def _replace_batch(arg: Any, count: int, batch: tuple[int, ...]) -> Any:
    """The first `count` dimensions of a tensor as the dimensions `batch`."""
    if not isinstance(arg, Tensor) or _is_state(arg):
        return arg
    return arg.reshape(*batch, *arg.shape[count:])


def _unfolded(result: Tensor, batch: tuple[int, ...]) -> Tensor:
    """A result of two leading dimensions as one of the dimensions `batch`."""
    if _is_state(result):
        return result
    return backends.in_shape(result.contiguous(), (*batch, *result.shape[2:]))


def on_features(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
    operator = OPERATORS[name]

    def run(*args: Any) -> Any:
        check(name, args)
        return _whole(kernel(*operator.grouped(args)), args[0])

    return run


def _of_backend(name: str, backend: str) -> Callable[..., Any]:
    if OPERATORS[name].takes not in (Features, FeatureProblem):
        return _on_costs(name, lambda: backends.load(backend))

    def kernel(*args: Any) -> Any:
        return getattr(backends.load(backend), name)(*args)

    return on_features(name, kernel)


library = torch.library.Library("softdtw_kernels", "DEF")
_NAMES = {name: operator.names for name, operator in OPERATORS.items()}

for _name, _operator in OPERATORS.items():
    library.define(_name + _operator.schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(f"softdtw_kernels::{_name}", _operator.fake, lib=library)
    # What an engine lacks is put together in `compositions`.
    library.impl(_name, _of_backend(_name, "numba"), "CPU")
    if _operator.takes is Monotonic:
        library.impl(_name, _on_costs(_name, lambda: rows), "CompositeExplicitAutograd")
    elif _name != "squared_distances_vjp":
        library.impl(_name, _of_backend(_name, "cuda"), "CUDA")

_namespace = torch.ops.softdtw_kernels
value = _namespace.value.default
gradient = _namespace.gradient.default
value_and_state = _namespace.value_and_state.default
gradient_from_state = _namespace.gradient_from_state.default
hessian_product = _namespace.hessian_product.default
smooth = _namespace.smooth.default
smooth_vjp = _namespace.smooth_vjp.default
smoothed_value = _namespace.smoothed_value.default
smoothed_gradient = _namespace.smoothed_gradient.default
squared_distances = _namespace.squared_distances.default
squared_distances_vjp = _namespace.squared_distances_vjp.default
fused_value = _namespace.fused_value.default
fused_gradient = _namespace.fused_gradient.default
fused_value_and_state = _namespace.fused_value_and_state.default
fused_gradient_from_state = _namespace.fused_gradient_from_state.default
monotonic_sum = _namespace.monotonic_sum.default
monotonic_product = _namespace.monotonic_product.default
monotonic_path = _namespace.monotonic_path.default
pattern_value = _namespace.pattern_value.default
pattern_gradient = _namespace.pattern_gradient.default
pattern_hessian_product = _namespace.pattern_hessian_product.default
