"""The torch.library operators (namespace `softdtw_kernels`), the seam between the public functions
and the kernels.

`*` is any number of leading dimensions, to which every batch tensor is already expanded (stride 0
allowed):

    value(cost (*, N, M), gamma (*), dummy (*)?, x_lengths (*)?, y_lengths (*)?, bandwidth?)
        -> value (*)
    gradient(.., grad_value (*), with_parameters)
        -> grad_cost (*, N, M), grad_gamma (*), grad_dummy (*); the last two may hold anything
           unless with_parameters; without a dummy cost the last one is then 0
    value_and_state(.. of value) -> value (*), state
    gradient_from_state(.. of value, state, grad_value (*), with_parameters) -> as gradient
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

The cost is float32 or float64 of any strides and is never copied here, unless it has more than two
leading dimensions (those of vmap, say) that cannot be viewed as two: backends see at most two.
Derivatives in the cost have its strides. gamma, dummy and their derivatives are float64, the
lengths int64. gamma and dummy may be a number in host memory, expanded, beside costs or features on
a CUDA device. With a dummy cost the lattice is that of weak alignment,
(2N + 1) x (2M + 1), which has no band: a dummy cost and a bandwidth together raise ValueError.
A backend is a module with functions of these names and signatures: CPU tensors go to
`backends.numba_cpu` and CUDA tensors to `backends.cupy_cuda`, each imported at its first call.
`derivatives` gives the operators their derivatives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _backends as backends
from .._checks import check_lattice, is_distance

_PROBLEM = (
    "Tensor cost, Tensor gamma, Tensor? dummy, Tensor? x_lengths, Tensor? y_lengths, "
    "SymInt? bandwidth"
)
_SMOOTHING = "Tensor cost, Tensor gamma, Tensor? x_lengths, Tensor? y_lengths, float origin_count"
_SMOOTHED = (
    "Tensor cost, Tensor gamma, Tensor? dummy, Tensor? x_lengths, Tensor? y_lengths, "
    "float origin_count"
)
_GRADIENT = "Tensor grad_value, bool with_parameters) -> (Tensor, Tensor, Tensor)"

_FEATURES = (
    "Tensor x, Tensor y, Tensor gamma, Tensor? x_lengths, Tensor? y_lengths, SymInt? bandwidth, "
    "str kind"
)
_FUSED_GRADIENT = (
    "Tensor grad_value, bool with_x, bool with_y, bool with_gamma) -> (Tensor, Tensor, Tensor)"
)

_SCHEMAS = {
    "value": f"({_PROBLEM}) -> Tensor",
    "gradient": f"({_PROBLEM}, {_GRADIENT}",
    "value_and_state": f"({_PROBLEM}) -> (Tensor, Tensor)",
    "gradient_from_state": f"({_PROBLEM}, Tensor state, {_GRADIENT}",
    "hessian_product": f"({_PROBLEM}, Tensor grad_value, Tensor tangent_cost, "
    "Tensor tangent_gamma, Tensor? tangent_dummy) -> (Tensor, Tensor, Tensor, Tensor)",
    "smooth": f"({_SMOOTHING}) -> Tensor",
    "smooth_vjp": f"({_SMOOTHING}, Tensor grad_s) -> (Tensor, Tensor)",
    "smoothed_value": f"({_SMOOTHED}) -> Tensor",
    "smoothed_gradient": f"({_SMOOTHED}, {_GRADIENT}",
    "squared_distances": "(Tensor x, Tensor y) -> Tensor",
    "squared_distances_vjp": "(Tensor x, Tensor y, Tensor g, bool with_x, bool with_y) "
    "-> (Tensor, Tensor)",
    "fused_value": f"({_FEATURES}) -> Tensor",
    "fused_gradient": f"({_FEATURES}, {_FUSED_GRADIENT}",
    "fused_value_and_state": f"({_FEATURES}) -> (Tensor, Tensor)",
    "fused_gradient_from_state": f"({_FEATURES}, Tensor state, {_FUSED_GRADIENT}",
}


# The arguments after the cost that are shaped like it; all other tensors have one entry an item.
_MATRICES = {"hessian_product": 6, "smooth_vjp": 4}
# The arguments that are a state, counted as those.
_STATES = {"gradient_from_state": 5, "fused_gradient_from_state": 6}


def _check_problem(name: str, cost: Tensor, *others: Any) -> None:
    """The kernels index raw memory: a tensor of another shape must not reach them."""
    if cost.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"the operators take costs of float32 or float64, got {cost.dtype}")
    if "bandwidth" in _SCHEMAS[name]:
        check_lattice(others[1], others[4])
    shape, batch, device = cost.shape, cost.shape[:-2], cost.device
    matrix, state = _MATRICES.get(name), _STATES.get(name)
    for k, other in enumerate(others):
        if not isinstance(other, Tensor):
            continue
        expected = shape if k == matrix else batch
        if k == state:
            _check_state(other)
        elif other.shape != expected:
            raise ValueError(
                f"{name} takes costs (*, N, M), here {tuple(cost.shape)}, and tensors expanded to "
                f"(*) or, of derivatives in the cost, (*, N, M); got {tuple(other.shape)} where "
                f"{tuple(expected)} is due"
            )
        if other.device != device and not (k < 2 and is_number(other)):
            raise ValueError(
                f"the cost is on {cost.device}, another tensor of the same call on {other.device}"
            )


def is_number(parameter: Tensor) -> bool:
    """Of gamma or a dummy cost: one for all items, in host memory, as CUDA kernels take it."""
    of_items = zip(parameter.shape, parameter.stride(), strict=True)
    one = not any(n > 1 and stride for n, stride in of_items)
    return one and parameter.device.type == "cpu" and parameter.dtype == torch.float64


def _check_state(state: Tensor) -> None:
    if not _is_state(state):
        raise ValueError(f"a state is contiguous uint8 (K), got {state.dtype} {tuple(state.shape)}")


def _is_state(tensor: Tensor) -> bool:
    """No other tensor of a call is one of bytes."""
    return tensor.dtype == torch.uint8 and tensor.dim() == 1 and tensor.is_contiguous()


def _dispatch(name: str, backend: str) -> Callable[..., Any]:
    def run(cost: Tensor, *others: Any) -> Any:
        _check_problem(name, cost, *others)
        kernel = getattr(backends.load(backend), name)
        if cost.dim() <= 4:
            return kernel(cost, *others)
        batch = cost.shape[:-2]
        folded = batch[0], batch[1:].numel()
        result = kernel(*(_replace_batch(arg, len(batch), folded) for arg in (cost, *others)))
        if isinstance(result, Tensor):
            return _unfolded(result, batch)
        return tuple(_unfolded(part, batch) for part in result)

    return run


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


def _dispatch_features(name: str, backend: str) -> Callable[..., Any]:
    def run(x: Tensor, y: Tensor, *others: Any) -> Any:
        if name == "squared_distances":
            _check_features(name, x, y)
        args = (x, y, *others)
        return getattr(backends.load(backend), name)(*args)

    return run


def _check_features(name: str, x: Tensor, y: Tensor, *others: Any) -> None:
    """As `_check_problem`, of features with equal leading dimensions."""
    if x.dtype not in (torch.float32, torch.float64) or y.dtype != x.dtype:
        raise TypeError(
            f"the operators take features of float32 or float64, got {x.dtype} and {y.dtype}"
        )
    if x.shape[:-2] != y.shape[:-2] or x.shape[-1] != y.shape[-1]:
        raise ValueError(
            "the operators take x (*, N, D) and y (*, M, D) of equal leading dimensions, "
            f"got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    for k, other in enumerate(others, start=1):
        if isinstance(other, str):
            is_distance(other)  # or raises
        if k == _STATES.get(name):
            _check_state(other)
        elif isinstance(other, Tensor) and other.shape != x.shape[:-2]:
            raise ValueError(
                f"the operators take tensors expanded to the leading dimensions "
                f"{tuple(x.shape[:-2])} of the features, got {tuple(other.shape)}"
            )
    devices = {t.device for t in (x, y, *others[1:]) if isinstance(t, Tensor)}
    if others and not is_number(others[0]):
        devices.add(others[0].device)
    if len(devices) > 1:
        raise ValueError(f"all tensors of a call must be on one device, got {devices}")


def _dispatch_fused(name: str, backend: str) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        _check_features(name, *args)
        return getattr(backends.load(backend), name)(*args)

    return run


def _like_cost(cost: Tensor) -> Tensor:
    return torch.empty_like(cost) if cost.dim() <= 4 else cost.new_empty(cost.shape)


def _fake_value(cost: Tensor, *_: Any) -> Tensor:
    return cost.new_empty(cost.shape[:-2])


def _fake_item(cost: Tensor) -> Tensor:
    return cost.new_empty(cost.shape[:-2], dtype=torch.float64)


def _fake_gradient(cost: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _like_cost(cost), _fake_item(cost), _fake_item(cost)


def _fake_value_and_state(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    # Of costs or features. How much is kept only a device tells, and nobody asks: compiled code
    # keeps nothing.
    return _fake_value(x), x.new_empty(0, dtype=torch.uint8)


def _fake_hessian_product(cost: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _fake_value(cost), _like_cost(cost), _fake_item(cost), _fake_item(cost)


def _fake_smooth(cost: Tensor, *_: Any) -> Tensor:
    return _like_cost(cost)


def _fake_smooth_vjp(cost: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _like_cost(cost), _fake_item(cost)


def _fake_squared_distances(x: Tensor, y: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], y.shape[-2])


def _fake_squared_distances_vjp(
    x: Tensor, y: Tensor, g: Tensor, with_x: bool, with_y: bool
) -> tuple[Tensor, Tensor]:
    return (
        x.new_empty(*x.shape[:-1], x.shape[-1] if with_x else 0),
        y.new_empty(*y.shape[:-1], y.shape[-1] if with_y else 0),
    )


def _fake_fused_value(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape[:-2])


def _fake_fused_gradient(x: Tensor, y: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    return *_fake_squared_distances_vjp(x, y, x, *others[-3:-1]), _fake_item(x)


_FAKES: dict[str, Callable[..., Any]] = {
    "value": _fake_value,
    "gradient": _fake_gradient,
    "value_and_state": _fake_value_and_state,
    "gradient_from_state": _fake_gradient,
    "hessian_product": _fake_hessian_product,
    "smooth": _fake_smooth,
    "smooth_vjp": _fake_smooth_vjp,
    "smoothed_value": _fake_value,
    "smoothed_gradient": _fake_gradient,
    "squared_distances": _fake_squared_distances,
    "squared_distances_vjp": _fake_squared_distances_vjp,
    "fused_value": _fake_fused_value,
    "fused_gradient": _fake_fused_gradient,
    "fused_value_and_state": _fake_value_and_state,
    "fused_gradient_from_state": _fake_fused_gradient,
}

_library = torch.library.Library("softdtw_kernels", "DEF")

for _name, _schema in _SCHEMAS.items():
    _library.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(f"softdtw_kernels::{_name}", _FAKES[_name], lib=_library)
    if _name == "squared_distances_vjp":
        # Elsewhere matrix products in float64, for which torch is the right kernel.
        _library.impl(_name, _dispatch_features(_name, "cpu_features"), "CPU")
        _library.impl(_name, _dispatch_features(_name, "features"), "CompositeExplicitAutograd")
        continue
    if _name.startswith("fused"):
        _library.impl(_name, _dispatch_fused(_name, "cuda"), "CUDA")
        _library.impl(_name, _dispatch_fused(_name, "features"), "CompositeExplicitAutograd")
        continue
    _kernel = _dispatch_features if _name == "squared_distances" else _dispatch
    _library.impl(_name, _kernel(_name, "numba"), "CPU")
    _library.impl(_name, _kernel(_name, "cuda"), "CUDA")

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
