"""What torch's dispatcher would do nothing with goes past it, and nothing else does."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from helpers import Forks, bits
from small_calls import VALUES, pair, random
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from softdtw_kernels import (
    S2DTWFunction,
    SoftDTWFunction,
    soft_dtw,
)
from softdtw_kernels._modes import is_plain


class Subclass(Tensor):
    pass


class Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


class Passing(TorchFunctionMode):
    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return function(*args, **(kwargs or {}))


def test_plain_is_what_the_dispatcher_would_not_change() -> None:
    x = random(2, 3)
    assert is_plain((x, None, 1, 2.0, "kind", True, torch.nn.Parameter(x), x.mT[1:]))
    with torch.inference_mode():
        assert is_plain((x, x + 1))
    with torch.no_grad(), torch.autocast("cpu"):
        assert is_plain((x,))
    elsewhere = x.to("meta")  # as on a GPU, beside numbers in host memory
    assert is_plain((elsewhere, x, None), "meta")
    assert not is_plain((elsewhere, x.as_subclass(Subclass)), "meta")
    leaked = []
    torch.func.grad(lambda a: (leaked.append(a), a.sum())[1])(x)
    others = {
        "a subclass": x.as_subclass(Subclass),
        "a negative": x.cdouble().conj().imag,
        "meta": x.to("meta"),
        "a wrapper that is left": leaked[0],
        "zeros of nothing": torch._efficientzerotensor((2, 3)),
    }
    assert [name for name, other in others.items() if is_plain((x, other))] == []
    found = []

    def note(a: Tensor) -> Tensor:
        found.append(is_plain((x,)))
        return a.sum()

    torch.func.vmap(note)(x)
    torch.func.jvp(note, (x,), (x,))
    torch.jit.trace(note, x, check_trace=False)
    torch.compile(note, backend="eager")(x)
    with forward_ad.dual_level():
        note(x)
    for mode in (Counting(), Passing(), torch.device("cpu")):
        with mode:
            note(x)
    assert found == [False] * 8


def test_a_first_call_in_inference_mode_does_not_hide_what_is_plain(fresh: Forks) -> None:
    code = """
import torch
from softdtw_kernels._modes import is_plain
x = torch.rand(2, 3)
with torch.inference_mode():
    assert is_plain((x, x + 1))
assert is_plain((x, x + 1))
"""
    fresh.run(code)


def test_a_mode_sees_the_operators() -> None:
    x, y = pair()
    plain = torch.autograd.grad(soft_dtw(x, y).sum(), (x, y))
    with Counting() as mode:
        found = torch.autograd.grad(soft_dtw(x, y).sum(), (x, y))
    assert any("softdtw_kernels.squared_distances" in name for name in mode.names)
    with Passing():
        others = torch.autograd.grad(soft_dtw(x, y).sum(), (x, y))
    for a, b, c in zip(plain, found, others, strict=True):
        assert bits(a) == bits(b) == bits(c)


def test_a_mode_of_the_backward_alone() -> None:
    """The value was a small call, its gradient is none any more."""
    x, y = pair()
    for name, function in VALUES.items():
        plain = torch.autograd.grad(function(x, y).sum(), (x, y))
        value = function(x, y).sum()
        with Counting() as mode:
            found = torch.autograd.grad(value, (x, y))
        assert any("softdtw_kernels" in called for called in mode.names), name
        for a, b in zip(plain, found, strict=True):
            assert bits(a) == bits(b)


def test_subclasses_stay_what_they_are() -> None:
    x, y = (t.detach() for t in pair())
    value = soft_dtw(x.as_subclass(Subclass).requires_grad_(), y)
    torch.testing.assert_close(value.as_subclass(Tensor), soft_dtw(x, y))
    value.sum().backward()


def test_a_number_is_made_once_and_for_each_mode() -> None:
    x, y = pair()
    for gamma in (0.77, -0.0, 0):
        with torch.inference_mode():
            first = soft_dtw(x, y, gamma=gamma)
        second = soft_dtw(x, y, gamma=gamma)  # an inference tensor could not be saved for backward
        second.sum().backward()
        torch.testing.assert_close(first, second.detach())
        torch.func.vmap(lambda a, b, gamma=gamma: soft_dtw(a, b, gamma=gamma))(x, y)
        torch.testing.assert_close(soft_dtw(x, y, gamma=gamma), second)


@pytest.mark.parametrize("function", [SoftDTWFunction, S2DTWFunction])
def test_the_operators_still_refuse_what_is_not_theirs(function: Any) -> None:
    with pytest.raises(TypeError, match="costs of float32 or float64"):
        function.apply(random(2, 3, 4).half().requires_grad_(), 1.0)


def test_direct_calls_are_checked_with_a_gradient_due_too() -> None:
    operators = torch.ops.softdtw_kernels
    cost, gamma = random(2, 3, 4).requires_grad_(), torch.ones(3, dtype=torch.float64)
    with pytest.raises(ValueError, match="expanded to"):
        operators.value(cost, gamma, None, None, None, None)
    with pytest.raises(ValueError, match="expanded to"):
        operators.gradient(cost, gamma[:2], None, None, None, None, torch.ones(1), True)
    with pytest.raises(ValueError, match="expanded to"):
        operators.smooth(cost, gamma, None, None, 1.0)
    with pytest.raises(ValueError, match="equal leading dimensions"):
        operators.fused_value(cost, cost[:1], gamma[:2], None, None, None, "sqeuclidean")


def test_small_calls_of_several_threads() -> None:
    x, y = pair()
    plain = torch.autograd.grad(soft_dtw(x, y, gamma=0.1).sum(), (x, y))
    wrong: list[int] = []

    def work(seed: int) -> None:
        for _ in range(100):
            found = torch.autograd.grad(soft_dtw(x, y, gamma=0.1).sum(), (x, y))
            if [bits(a) for a in found] != [bits(b) for b in plain]:
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
