"""Small calls on the CPU, as in `test_small_calls`: what torch asks of them beside values and
gradients, what they keep and when, and what they refuse.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import bits
from small_calls import SPECIAL, VALUES, pair, random
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from softdtw_kernels import (
    s2dtw,
    s2dtw_from_cost,
    soft_dtw,
    soft_dtw_from_cost,
)
from softdtw_kernels._cpu import small
from softdtw_kernels._operators import prepared


@pytest.mark.parametrize("name", VALUES)
def test_derivatives(name: str) -> None:
    x, y = pair()
    function = VALUES[name]
    assert torch.autograd.gradcheck(
        function, (x, y), check_forward_ad=True, check_batched_grad=True
    )
    assert torch.autograd.gradgradcheck(function, (x, y))
    value = function(x, y)  # first without, then with a graph of the gradient
    first = torch.autograd.grad(value.sum(), (x, y), retain_graph=True)
    again = torch.autograd.grad(value.sum(), (x, y), create_graph=True)
    for a, b in zip(first, again, strict=True):
        torch.testing.assert_close(a, b)
        assert b.requires_grad and not a.requires_grad
    hessians = [
        torch.autograd.functional.hessian(lambda a: function(a, y).sum(), x, vectorize=vectorize)
        for vectorize in (False, True)  # the latter by another vmap than that of torch.func
    ]
    torch.testing.assert_close(*hessians)
    with torch.autograd.detect_anomaly():
        function(x, y).sum().backward()
    for leaf, grad in zip((x, y), first, strict=True):
        torch.testing.assert_close(leaf.grad, grad)


@pytest.mark.parametrize("name", VALUES)
def test_an_input_changed_in_place_is_noticed_or_does_no_harm(name: str) -> None:
    """It does none where the value has copies of its own: for the lengths, or of unit length."""
    x, y = pair()
    plain = torch.autograd.grad(VALUES[name](x, y).sum(), (x, y))
    for changed in (0, 1):
        inputs = [x * 1, y * 1]
        value = VALUES[name](*inputs)
        with torch.no_grad():
            inputs[changed] += 1
        if name in ("soft_dtw lengths", "s2dtw", "s2dtw raw", "cosine"):
            for a, b in zip(torch.autograd.grad(value.sum(), (x, y)), plain, strict=True):
                assert bits(a) == bits(b)
        else:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                value.sum().backward()


@pytest.mark.parametrize("name", VALUES)
def test_only_one_input_needs_a_gradient(name: str) -> None:
    x, y = pair()
    both = torch.autograd.grad(VALUES[name](x, y).sum(), (x, y))
    for k, leaf in enumerate((x, y)):
        inputs = [t if t is leaf else t.detach() for t in (x, y)]
        (alone,) = torch.autograd.grad(VALUES[name](*inputs).sum(), leaf)
        assert bits(alone) == bits(both[k])


@pytest.mark.parametrize("function", [soft_dtw, s2dtw])
def test_gamma_and_the_dummy_cost_get_their_gradients(function: Callable[..., Tensor]) -> None:
    x, y = (t.detach() for t in pair())
    names = ["gamma", "dummy_cost"][: 1 if function is soft_dtw else 2]
    numbers = [torch.tensor(0.3, dtype=torch.float64, requires_grad=True) for _ in names]

    def value(*numbers: Tensor) -> Tensor:
        return function(x, y, **dict(zip(names, numbers, strict=True)))

    assert torch.autograd.gradcheck(value, numbers)
    both = torch.autograd.grad(value(*numbers).sum(), numbers)
    leaf = x.clone().requires_grad_()
    settings = dict(zip(names, numbers, strict=True))
    *of_numbers, _ = torch.autograd.grad(function(leaf, y, **settings).sum(), (*numbers, leaf))
    for a, b in zip(both, of_numbers, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", VALUES)
def test_hooks_and_checkpoints(name: str) -> None:
    x, y = pair()
    plain = torch.autograd.grad(VALUES[name](x, y).sum(), (x, y))
    with torch.autograd.graph.saved_tensors_hooks(Tensor.clone, Tensor.clone):
        value = VALUES[name](x, y)
    hooked = torch.autograd.grad(value.sum(), (x, y))
    value = checkpoint(VALUES[name], x, y, use_reentrant=False)
    recomputed = torch.autograd.grad(value.sum(), (x, y))
    for a, b, c in zip(plain, hooked, recomputed, strict=True):
        assert bits(a) == bits(b) == bits(c)


@pytest.mark.parametrize("factor", [torch.inf, torch.nan, -1.0])
def test_padding_gets_0_whatever_the_factor_is(factor: float) -> None:
    cost = random(2, 4, 5).requires_grad_()
    value = soft_dtw_from_cost(cost, x_lengths=[2, 4], y_lengths=[5, 3])
    (grad,) = torch.autograd.grad(value, cost, torch.full((2,), factor))
    zeros = torch.zeros(4, 5)
    assert bits(grad[0, 2:]) == bits(zeros[2:])
    assert bits(grad[1, :, 3:]) == bits(zeros[:, 3:])


def saved_bytes(call: Callable[[], Tensor]) -> int:
    """Of all that the graph of a call holds."""
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: sizes.append(t.nbytes) or t,
        lambda t: t,
    ):
        call()
    return sum(sizes)


def test_what_is_kept_is_small() -> None:
    """Larger calls compute the gradient when it is asked for."""
    for cells, kept in ((100, True), (small.LARGEST + 100, True), (small.KEPT + 100, False)):
        cost = random(1, cells // 10, 10).requires_grad_()
        held = saved_bytes(functools.partial(soft_dtw_from_cost, cost))
        assert (held > cost.nbytes + 100) == kept


@pytest.mark.parametrize("lengths", [None, [9, 12, 4]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", SPECIAL)
def test_the_gradient_is_kept_whichever_tier_makes_it(
    kind: str, dtype: torch.dtype, lengths: list[int] | None
) -> None:
    cost = random(3, 12, 10).abs()
    cost[1] = SPECIAL[kind](cost[1:2])[0]
    leaf = cost.to(dtype).requires_grad_()
    call = functools.partial(soft_dtw_from_cost, leaf, gamma=0.1, x_lengths=lengths)
    assert saved_bytes(call) >= 2 * leaf.nbytes


@pytest.mark.parametrize("lengths", [None, [9, 12, 4]])
@pytest.mark.parametrize("gamma", [0.0, 0.1, torch.full((3,), 0.1, dtype=torch.float64)], ids=str)
@pytest.mark.parametrize(
    "pattern", [{"warp_cost": 0.3}, {"repeat": "y"}, {"open_begin": "x", "open_end": "xy"}], ids=str
)
def test_the_gradient_of_a_pattern_is_kept(
    pattern: dict[str, Any], gamma: Any, lengths: list[int] | None
) -> None:
    leaf = random(3, 12, 10).abs().requires_grad_()
    call = functools.partial(soft_dtw_from_cost, leaf, gamma=gamma, x_lengths=lengths, **pattern)
    assert saved_bytes(call) >= 2 * leaf.nbytes


@pytest.mark.parametrize(
    "find, function, size",
    [
        (prepared.kind_of_features, soft_dtw, 4),
        (prepared.kind_of_features, soft_dtw, 33),
        (prepared.kind_of_costs, soft_dtw_from_cost, 4),
        (prepared.kind_of_costs, s2dtw_from_cost, 4),
        (prepared.kind_of_costs, functools.partial(s2dtw_from_cost, smoothing=False), 4),
    ],
)
def test_a_kind_of_call_is_prepared_once(find: Any, function: Any, size: int) -> None:
    inputs = [random(2, size, size), random(2, size, size)][: 2 if function is soft_dtw else 1]
    find.cache_clear()
    for k, gamma in enumerate((1.0, 0.5, 1)):  # one that is annealed makes no other kind
        leaves = [t.clone().requires_grad_() for t in inputs]
        function(*leaves, gamma=gamma).sum().backward()
        assert (find.cache_info().misses, find.cache_info().hits) == (1, k)
    for k, gamma in enumerate((0, 0.0)):  # the hard minimum does
        function(*inputs, gamma=gamma)
        assert (find.cache_info().misses, find.cache_info().hits) == (2, 2 + k)
    function(*inputs, gamma=torch.ones(2, dtype=torch.float64))
    function(*inputs, x_lengths=[size, 1])
    with torch.no_grad():
        function(*inputs, backend="reference")
    assert (find.cache_info().misses, find.cache_info().hits) == (2, 3)


@pytest.mark.parametrize("wrong", [None, "x", 1.0, [[1.0]], random(3), random(2, 3).to(torch.int)])
def test_what_is_wrong_is_refused_as_ever(wrong: Any) -> None:
    right = random(2, 4, 3)
    for call in (
        lambda: soft_dtw(wrong, right),
        lambda: soft_dtw(right, wrong),
        lambda: soft_dtw_from_cost(wrong),
        lambda: s2dtw_from_cost(wrong),
        lambda: soft_dtw(right, right, cost=right),  # type: ignore[arg-type]  # is the fault
        lambda: soft_dtw(right, right, cost=np.zeros(2)),
        lambda: soft_dtw(right, right, gamma=True),
    ):
        with pytest.raises((TypeError, ValueError), match="got"):
            call()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(9, 8), (3, 70, 64)])
def test_what_hooks_give_back_in_another_type_goes_to_no_kernel(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """torch asks hooks to keep it. Kernels would read or write beyond what they were given."""
    other = torch.float64 if dtype == torch.float32 else torch.float32
    generator = torch.Generator().manual_seed(0)
    cost = torch.rand(shape, dtype=dtype, generator=generator).requires_grad_()
    for function in (s2dtw_from_cost, soft_dtw_from_cost):
        (truth,) = torch.autograd.grad(function(cost, gamma=0.4).sum(), cost)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.to(other), lambda t: t):
            value = function(cost, gamma=0.4)
        try:
            (gradient,) = torch.autograd.grad(value.sum(), cost)
        except (RuntimeError, TypeError, ValueError):
            continue
        torch.testing.assert_close(gradient, truth, rtol=1e-4, atol=1e-5)
