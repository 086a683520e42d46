"""What torch is doing around a call: compiling, recording, transforming, or nothing of the kind.

All that asks torch about itself below its documented names is here, and says what holds without.
"""

from __future__ import annotations

import functools
from collections.abc import Container, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

try:
    from torch._C import _are_functorch_transforms_active as in_transform
except ImportError:  # pragma: no cover  # a torch without this name

    def in_transform() -> bool:
        return True


try:
    from torch.compiler import is_exporting
except ImportError:  # pragma: no cover  # torch 2.6; then not where Dynamo is what exports

    def is_exporting() -> bool:
        return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()


try:
    from torch._C import _dispatch_keys as dispatch_keys
    from torch._C import _len_torch_dispatch_stack as dispatch_modes
    from torch._C import _len_torch_function_stack as function_modes
except ImportError:  # pragma: no cover  # a torch without this name

    def dispatch_modes() -> int:
        return 1


try:
    from torch._C._functorch import is_legacy_batchedtensor as is_batched_gradient
except ImportError:  # pragma: no cover  # a torch without this name

    def is_batched_gradient(tensor: Tensor) -> bool:
        return False


try:
    from torch._C import _get_dispatch_mode, _TorchDispatchModeKey

    def is_proxied() -> bool:
        return _get_dispatch_mode(_TorchDispatchModeKey.PROXY) is not None

except ImportError:  # pragma: no cover  # a torch without these names

    def is_proxied() -> bool:
        return False


PLAIN_TYPES = (Tensor, Parameter)
_NO_TENSORS = {type(None), bool, int, float, str}


def is_recorded() -> bool:
    """Whether the operators that are called are taken down: by torch.export, torch.jit.trace or
    make_fx, or by torch.compile inside of a transform of torch.func. All that will be known of a
    Function then, whose backward is lost, is what its forward calls.
    """
    if torch._C._get_tracing_state() is not None or is_exporting():
        return True
    # Elsewhere torch.compile keeps Functions, and whoever else makes proxies is make_fx.
    if torch.compiler.is_compiling():
        return in_transform()
    return dispatch_modes() > 0 and is_proxied()


def is_forward_mode() -> bool:
    """Whether forward mode asks for tangents here: not in the forward of a Function."""
    return forward_ad._current_level >= 0 and torch._C._is_fwd_grad_enabled()


def is_transformed() -> bool:
    """Whether a functorch transform or a level of forward mode is active."""
    return in_transform() or forward_ad._current_level >= 0


def is_autocast(device: torch.device) -> bool:
    """Whether autocast is on for a device; torch refuses to tell for meta tensors."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def in_plain_mode() -> bool:
    """Plain eager mode: nothing but the tensors can make more of a call than it says. Not what is
    compiled, exported, traced or transformed, and no mode of torch or of the user.
    """
    return not (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or is_exporting()
        or in_transform()
        or forward_ad._current_level >= 0
        or dispatch_modes()
        or function_modes()
    )


def is_plain(
    args: Iterable[Any], device: str = "cpu", others: Container[type] = _NO_TENSORS
) -> bool:
    """Whether torch's dispatcher would do nothing with an operator of these arguments but call the
    engine of that kind of device. It takes longer over that than small kernels do.

    Not with a subclass, a tensor elsewhere, a wrapper of functorch, one that stands for its
    negative, or in any but plain eager mode. Beside tensors of a GPU there may be some in host
    memory. others: the types that may stand beside tensors.
    """
    if not in_plain_mode():
        return False
    plain = _keys_of_plain_tensors(device)
    for arg in args:
        kind = type(arg)
        if kind in PLAIN_TYPES:
            if dispatch_keys(arg).raw_repr() not in plain:
                return False
        elif kind not in others:
            return False
    return True


def are_plain_tensors(args: Iterable[Any]) -> bool:
    """As `is_plain`, and all of them tensors."""
    return is_plain(args, others=())


@functools.cache
def _keys_of_plain_tensors(device: str = "cpu") -> tuple[int, ...]:
    """Of the device and the CPU; asked for where no mode is active that would make others."""
    devices = dict.fromkeys((device, "cpu"))
    with torch.inference_mode(False):
        normal = [torch.empty(0, device=each) for each in devices]
    with torch.inference_mode():
        inference = [torch.empty(0, device=each) for each in devices]
    return tuple(dispatch_keys(tensor).raw_repr() for tensor in (*normal, *inference))


@functools.lru_cache(maxsize=64)
def number_of_plain_calls(value: float, batch: tuple[int, ...], inference: bool) -> Tensor:
    """A setting, expanded. Made once, for most calls are like the one before; nobody writes to it.
    Not of 0, whose sign a cache does not see, and not in any but plain eager mode.
    """
    return torch.full((), value, dtype=torch.float64, device="cpu").expand(batch)
