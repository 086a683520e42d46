"""Every check of an argument, and its message: what was got, what was expected, what to do. (That
of a cost is in `costs`, beside the table of their names.)

Shapes, dtypes, names and Python numbers are checked at the door, by the functions here that
`functional` calls. Values inside tensors have checks of their own: `_values`.
"""

from __future__ import annotations

import functools
import math
import operator
import sys
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ._modes import in_plain_mode, is_autocast, number_of_plain_calls
from ._remedies import features_first, to_tensor
from ._values import LARGEST_GAMMA, finite_error, gamma_error

Reduction = Literal["none", "mean", "sum"]
Backend = Literal["numba", "reference", "cuda"]
REDUCTIONS: tuple[str, ...] = get_args(Reduction)
BACKENDS: tuple[str, ...] = get_args(Backend)
KINDS = ("sqeuclidean", "negative_dot")  # the costs of two features that kernels compute
WIDEST_BAND = 2**30  # wider than any cost matrix; sums with lengths fit 32 bits
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

Lengths = Tensor | Sequence[int] | None
Number = float | int | Tensor


def outside_of_traces(check: Callable[..., Any]) -> Callable[..., Any]:
    """A check of shapes that torch.jit.trace does not see.

    It makes tensors of shapes, and warns of every question about them. The operators ask again when
    the traced program runs.
    """

    @functools.wraps(check)
    def call(*args: Any) -> Any:
        state = torch._C._get_tracing_state()
        if state is None:
            return check(*args)
        # torch's types do not have this function.
        torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
        try:
            return check(*args)
        finally:
            torch._C._set_tracing_state(state)  # type: ignore[attr-defined]

    return call


same_shape = outside_of_traces(operator.eq)


@outside_of_traces
def check_tensor(x: Any, name: str, shape: str) -> None:
    """A real floating-point tensor of at least two dimensions, none of the last two empty."""
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor of shape {shape}, got {type(x).__name__}"
            + to_tensor(x, name, of_frames=shape.endswith("D)"))
        )
    if x.is_nested:  # one with strides has neither a shape nor a layout of its own to tell
        raise TypeError(
            f"{name} must be a dense tensor, got a nested one; pass {name}.to_padded_tensor(0.0) "
            f"and, as its lengths, [len(sequence) for sequence in {name}.unbind()]"
        )
    if x.dtype not in DTYPES:
        remedy = f"convert it, for example with {name}.float()"
        if x.is_quantized:
            remedy = f"convert it with {name}.dequantize()"
        if x.is_complex():
            remedy = f"pass {name}.abs() or {name}.real"
            if shape.endswith("D)"):
                remedy += f", or both parts as features: torch.view_as_real({name}).flatten(-2)"
        raise TypeError(
            f"{name} must be float32, float64, float16 or bfloat16, got {x.dtype}; {remedy}"
        )
    if x.layout != torch.strided:
        raise TypeError(
            f"{name} must be a dense tensor, got the layout {x.layout}; "
            f"convert it, for example with {name}.to_dense()"
        )
    if x.dim() < 2:
        remedy = ""
        if x.dim() == 1 and shape.endswith("D)"):
            remedy = f"; a sequence of single numbers is {name}[:, None], with one feature a frame"
        raise ValueError(f"{name} must have shape {shape}, got {tuple(x.shape)}{remedy}")
    if x.shape[-1] == 0 or x.shape[-2] == 0:
        raise ValueError(
            f"{name} must have shape {shape} without an empty sequence or feature dimension, "
            f"got {tuple(x.shape)}"
        )


@outside_of_traces
def check_features(x: Any, y: Any, pairwise: bool) -> None:
    """x (*, N, D) and y (*, M, D) of one dtype and device, broadcastable.

    With pairwise, (A, N, D) and (B, M, D).
    """
    check_tensor(x, "x", "(A, N, D)" if pairwise else "(*, N, D)")
    check_tensor(y, "y", "(B, M, D)" if pairwise else "(*, M, D)")
    if x.device != y.device:
        raise ValueError(f"x and y must be on one device, got {x.device} and {y.device}")
    if x.dtype != y.dtype and not is_autocast(x.device):
        raise TypeError(
            f"x and y must have one dtype, got {x.dtype} and {y.dtype}; convert one of them"
        )
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(
            "x and y must have the same number of features D in their last dimension, "
            f"got shapes {tuple(x.shape)} and {tuple(y.shape)}"
            + features_first(x, y, "x.mT and y.mT", "(*, D, N)")
        )
    if pairwise:
        if x.dim() != 3 or y.dim() != 3:
            raise ValueError(
                "pairwise=True compares every sequence of x (A, N, D) with every sequence of "
                f"y (B, M, D), got shapes {tuple(x.shape)} and {tuple(y.shape)}"
            )
    elif x.shape[:-2] != y.shape[:-2]:
        broadcast_batch(x, y)


def broadcast_batch(x: Tensor, y: Tensor) -> torch.Size:
    """The common leading shape of x and y."""
    batch = x.shape[:-2]
    if same_shape(batch, y.shape[:-2]):  # as nearly always: torch takes 7 us to tell
        return batch
    try:
        return torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    except RuntimeError:
        advice = "the functions compare all with all where they are given pairwise=True"
        if x.dim() == y.dim() == 3 and x.shape[1] == y.shape[1]:
            advice = (
                "if time comes first, as (N, batch, D), transpose both, as in x.transpose(0, 1)"
            )
        raise ValueError(
            "the leading dimensions of x (*, N, D) and y (*, M, D) must be equal or broadcastable, "
            f"got shapes {tuple(x.shape)} and {tuple(y.shape)}; {advice}"
        ) from None


def batch_parameter(
    value: Number, name: str, batch: tuple[int, ...], device: torch.device, backend: str = ""
) -> Tensor:
    """A number, or a tensor that broadcasts to `batch`, as a float64 tensor of that shape,
    differentiable if it was.

    For the CUDA kernels a number stays in host memory: on the device it would cost a launch. But
    not in what torch.compile traces, where it would be a kernel for the CPU.
    """
    value = check_parameter(value, name)
    if isinstance(value, Tensor):
        if not _broadcasts(tuple(value.shape), batch):
            raise ValueError(
                f"{name} must be a number or a tensor, 0-d or one that broadcasts to the batch "
                f"{tuple(batch)}, got shape {tuple(value.shape)}"
            )
        return to_device(value, device, torch.float64).expand(batch)
    if backend == "cuda" and not torch.compiler.is_compiling():
        device = torch.device("cpu")
    if in_plain_mode() and device.type == "cpu" and value:
        return number_of_plain_calls(float(value), batch, torch.is_inference_mode_enabled())
    return torch.full((), value, dtype=torch.float64, device=device).expand(batch)


def check_parameter(value: Any, name: str) -> Number:
    """A number or a real tensor; the operator checks its values, `batch_parameter` its shape."""
    if not isinstance(value, Tensor):
        return check_number(value, name, "a number or a tensor (0-d, or one value an item)")
    if value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name} must be a real tensor, got {value.dtype}")
    return value


def check_scalar(value: Any, name: str, where: str) -> None:
    """A number or a real 0-d tensor, where each item of a batch cannot have its own."""
    if isinstance(check_parameter(value, name), Tensor) and value.dim() != 0:
        raise ValueError(
            f"{name} must be a number or a 0-d tensor with {where}, got shape {tuple(value.shape)}"
        )


def check_number(value: Any, name: str, expected: str = "a number") -> float:
    """A finite real number, NumPy's included; gamma in its range."""
    if type(value) is not float:
        value = _number(value, name, expected)
    # Comparisons, not math.isfinite: torch.compile makes numbers symbolic.
    if name == "gamma":
        if not 0 <= value <= LARGEST_GAMMA:
            raise gamma_error(value)
    elif not -sys.float_info.max <= value <= sys.float_info.max:
        raise finite_error(value, name)
    return value


def _number(value: Any, name: str, expected: str) -> float:
    """A real number, also of NumPy (0-d arrays too) and of other kinds."""
    if isinstance(value, (float, int)) and not isinstance(value, bool):
        return value
    plain = value.item() if getattr(value, "shape", None) == () else value
    if isinstance(plain, bool) or not isinstance(plain, Real):
        what = type(value).__name__
        if getattr(value, "shape", ()) != ():
            what = f"{what} of shape {tuple(value.shape)}"
        raise TypeError(f"{name} must be {expected}, got {what}")
    return float(plain)


def tensor_of(numbers: Any, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor in host memory, whatever the default device is. torch refuses arrays with negative
    strides, or with bytes in another order: these are lists first.
    """
    try:
        return torch.as_tensor(numbers, dtype=dtype, device="cpu")
    except (TypeError, ValueError):
        if not hasattr(numbers, "tolist"):
            raise
        return torch.as_tensor(numbers.tolist(), dtype=dtype, device="cpu")


def check_lengths(
    lengths: Lengths, name: str, expected: tuple[int, ...], device: torch.device
) -> Tensor | None:
    """Integer lengths of a shape that is `expected` or broadcasts to it, as an int64 tensor of
    their own shape.
    """
    if lengths is None:
        return None
    as_tensor = name
    if not isinstance(lengths, Tensor):
        as_tensor = f"torch.tensor({name})"
        try:
            lengths = tensor_of(lengths)
        except (TypeError, ValueError, RuntimeError):
            is_list = isinstance(lengths, Sequence) and not isinstance(lengths, (bytes, bytearray))
            if is_list and all(isinstance(n, int) for n in lengths):
                largest = max(map(int, lengths), key=abs)
                raise ValueError(f"{name} must be int64, got {largest}, which is none") from None
            raise TypeError(
                f"{name} must be an integer tensor or a sequence of integers, "
                f"got {type(lengths).__name__}"
            ) from None
        if lengths.numel() == 0:
            lengths = lengths.long()  # an empty list has no dtype of its own
    if lengths.dtype == torch.bool:
        raise TypeError(
            f"{name} must be integers, got torch.bool; of a mask that is True at the frames that "
            f"count, which come first, pass mask.sum(-1), and of its opposite (~mask).sum(-1)"
        )
    if lengths.is_floating_point() or lengths.is_complex():
        part = ".real" if lengths.is_complex() else ""
        raise TypeError(
            f"{name} must be integers, got {lengths.dtype}; convert with {as_tensor}{part}.long()"
        )
    if not (same_shape(lengths.shape, expected) or _broadcasts(lengths.shape, expected)):
        raise ValueError(
            f"{name} must be integers of shape {tuple(expected)}, one length a sequence, "
            f"got shape {tuple(lengths.shape)}"
        )
    return to_device(lengths, device, torch.int64)


def to_device(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Differentiable; from host memory to another device without waiting for that device.

    The tensor is copied first, so that nobody can write to it before the device has read it. Its
    gradient is copied back to host memory, and torch waits for that.
    """
    if tensor.device.type == "cpu" != device.type:
        return tensor.to(dtype=dtype, copy=True).to(device, non_blocking=True)
    return tensor.to(device=device, dtype=dtype)


@outside_of_traces
def _broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    return len(shape) <= len(target) and all(
        a == b or a == 1 for a, b in zip(reversed(shape), reversed(target), strict=False)
    )


def check_bandwidth(bandwidth: Any) -> int | None:
    if bandwidth is None:
        return None
    bandwidth = _integer(bandwidth, "bandwidth", "None or an integer")
    if bandwidth < 0:
        raise ValueError(f"bandwidth must be at least 0 (None is no band), got {bandwidth}")
    return min(bandwidth, WIDEST_BAND)


def check_lattice(dummy: Any, bandwidth: int | None) -> None:
    """A dummy cost or a band: what a band of the weak lattice would be is defined nowhere."""
    if dummy is not None and bandwidth is not None:
        raise ValueError(
            f"bandwidth must be None with a dummy cost, got {bandwidth}: the lattice of weak "
            "alignment has no band; leave out one of the two"
        )


def check_flag(value: Any, name: str) -> bool:
    """True or False, NumPy's too: of words, "False" would be one that is true."""
    if type(value) is not bool:
        plain = value.item() if getattr(value, "shape", None) == () else value
        if not isinstance(plain, bool):
            raise TypeError(f"{name} must be True or False, got {value!r}")
        return plain
    return value


def check_count(value: Any, name: str) -> int:
    value = _integer(value, name, "an integer")
    if value < 0:
        raise ValueError(f"{name} must be at least 0, got {value}")
    return value


def check_tolerance(value: Any, name: str) -> float:
    value = check_number(value, name)
    if value < 0:
        raise ValueError(f"{name} must be at least 0, got {value}")
    return value


def _integer(value: Any, name: str, expected: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:  # no integer, or an array of several
        pass
    raise TypeError(f"{name} must be {expected}, got {type(value).__name__}")


def check_reduction(reduction: Any) -> None:
    if not isinstance(reduction, str) or reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")


def check_backend(backend: Any) -> None:
    if backend is not None and not (isinstance(backend, str) and backend in BACKENDS):
        raise ValueError(f"backend must be None or one of {BACKENDS}, got {backend!r}")


def is_distance(kind: str) -> bool:
    """Whether a kind is the one of distances, not that of dot products; others raise."""
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
    return kind == "sqeuclidean"


def check_origin_count(origin_count: Any) -> float:
    if isinstance(origin_count, Tensor):
        raise TypeError("origin_count must be a number, got Tensor; it gets no gradient")
    origin_count = _number(origin_count, "origin_count", "a number")
    if not 0 < origin_count < math.inf:
        raise ValueError(f"origin_count must be finite and greater than 0, got {origin_count}")
    return float(origin_count)
