"""Every pattern of steps, begins and ends: brute force, identities, invariances, transforms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_close, derivative, examples
from hypothesis import given
from hypothesis import strategies as st
from pattern_calls import PRICES, cost_of, number, options_of, value_of
from pattern_oracle import PATTERNS, SIDES, Truth, enumerate_paths, padded
from strategies import COST_KINDS, gammas, seeds
from torch import Tensor
from torch.func import grad, jvp, vmap

from softdtw_kernels import (
    forward_sum,
    monotonic_alignment,
    soft_dtw,
    soft_dtw_alignment,
    soft_dtw_alignment_from_cost,
    soft_dtw_divergence,
    soft_dtw_from_cost,
)

SIZES = st.integers(1, 4)


def _run(cost: np.ndarray, gamma: float, warp: float, skip: float, **options: Any) -> list[Any]:
    """Return the value and its gradients by cost, gamma, warp and skip cost."""
    leaves = torch.from_numpy(cost).clone().requires_grad_(), *map(number, (gamma, warp, skip))
    value = soft_dtw_from_cost(
        leaves[0], gamma=leaves[1], warp_cost=leaves[2], skip_cost=leaves[3], **options
    )
    return [value.item(), *torch.autograd.grad(value, leaves)]


def _assert_truth(got: list[Any], truth: Truth, cost: np.ndarray, gamma: float) -> None:
    value, visits, by_gamma, by_warp, by_skip = got
    scale = max(1.0, float(np.abs(cost[np.isfinite(cost)]).sum(initial=0.0)))
    if math.isinf(truth.value):
        assert value == truth.value
    else:
        assert abs(value - truth.value) <= 1e-12 * scale
    atol = 1e-9 if gamma == 0 else max(1e-9, 1e-13 * scale / gamma)
    assert_close(visits, truth.visits, atol, "gradient")
    assert_close(by_gamma, truth.by_gamma, 20 * atol, "by gamma")
    assert_close(by_warp, truth.by_warp, 20 * atol, "by warp cost")
    assert_close(by_skip, truth.by_skip, 20 * atol, "by skip cost")


@pytest.mark.slow  # most of it compiles
@examples(60)
@given(
    pattern=st.sampled_from(PATTERNS),
    n=SIZES,
    m=SIZES,
    seed=seeds(),
    kind=st.sampled_from(COST_KINDS),
    forbidden=st.sampled_from([0.0, 0.2]),
    gamma=gammas(1e-2),
    warp=PRICES,
    skip=PRICES,
)
def test_all_alignments(
    pattern: tuple[str, str, str],
    n: int,
    m: int,
    seed: int,
    kind: str,
    forbidden: float,
    gamma: float,
    warp: float,
    skip: float,
    backend: str,
) -> None:
    cost = cost_of(kind, n, m, seed, forbidden)
    truth = enumerate_paths(cost, gamma, warp, skip, pattern)
    got = _run(cost, gamma, warp, skip, **options_of(pattern), backend=backend)
    _assert_truth(got, truth, cost, gamma)


@pytest.mark.parametrize("pattern", PATTERNS, ids="-".join)
def test_every_combination(pattern: tuple[str, str, str], backend: str) -> None:
    for n, m in ((3, 4), (4, 3), (3, 3)):
        cost = cost_of("normal", n, m, n)
        truth = enumerate_paths(cost, 0.5, 0.3, 0.2, pattern)
        got = _run(cost, 0.5, 0.3, 0.2, **options_of(pattern), backend=backend)
        _assert_truth(got, truth, cost, 1)


@examples(60)
@given(
    pattern=st.sampled_from(PATTERNS),
    n=SIZES,
    m=SIZES,
    seed=seeds(),
    forbidden=st.sampled_from([0.0, 0.2]),
    warp=st.integers(-1, 2),
    skip=st.integers(-1, 1),
)
def test_one_cheapest_alignment_of_ties(
    pattern: tuple[str, str, str],
    n: int,
    m: int,
    seed: int,
    forbidden: float,
    warp: int,
    skip: int,
    backend: str,
) -> None:
    cost = cost_of("integers", n, m, seed, forbidden)
    truth = enumerate_paths(cost, 0.0, warp, skip, pattern)
    options = {**options_of(pattern), "backend": backend}
    value, visits, *by_settings = _run(cost, 0.0, warp, skip, **options)
    assert value == truth.value
    assert np.array_equal(visits.numpy(), truth.visits)
    expected = [0.0, truth.by_warp, truth.by_skip]
    assert [float(d) for d in by_settings] == expected
    # The path does not depend on gamma.
    alignment = soft_dtw_alignment_from_cost(
        torch.from_numpy(cost), gamma=0.7, warp_cost=warp, skip_cost=skip, **options
    )
    assert np.array_equal(alignment.path().numpy(), truth.path)


# Identities ---------------------------------------------------------------------------------------


@given(
    n=st.integers(1, 9),
    m=st.integers(1, 9),
    seed=seeds(),
    gamma=gammas(1e-2),
    warp=PRICES,
    skip=PRICES,
    # Where a path may leave out frames of x first and of y last, prices would touch each other.
    ends=st.sampled_from([("x", ""), ("y", ""), ("", "x"), ("", "y"), ("x", "x"), ("y", "y")]),
)
def test_one_open_side_is_padding(
    n: int,
    m: int,
    seed: int,
    gamma: float,
    warp: float,
    skip: float,
    ends: tuple[str, str],
    backend: str,
) -> None:
    cost = cost_of("normal", n, m, seed)
    frame, more = padded(cost + 2 * warp, gamma, skip + warp, *ends)
    plain = soft_dtw_from_cost(torch.from_numpy(frame.copy()), gamma=gamma).item()
    got = _run(cost, gamma, warp, skip, open_begin=ends[0], open_end=ends[1], backend=backend)
    value, visits, _, by_warp, by_skip = got
    assert value == pytest.approx(plain + more - (n + m) * warp, rel=1e-11, abs=1e-11)
    # The same by derivatives: 2 K = steps that repeat + N + M - frames left out.
    assert by_warp.item() == pytest.approx(
        2 * visits.sum().item() - (n + m) + by_skip.item(), abs=1e-9
    )


@given(pattern=st.sampled_from(PATTERNS), seed=seeds(), gamma=st.sampled_from([0.0, 0.5]))
def test_transposed_and_reversed(
    pattern: tuple[str, str, str], seed: int, gamma: float, backend: str
) -> None:
    cost = cost_of("normal", 4, 6, seed)
    value, visits, *by_settings = _run(
        cost, gamma, 0.2, 0.1, **options_of(pattern), backend=backend
    )
    swap = str.maketrans("xy", "yx")
    sides = ["".join(sorted(side.translate(swap))) for side in pattern]
    cases = [
        (cost.T, sides, lambda e: e.T),
        (cost[::-1, ::-1], [pattern[0], pattern[2], pattern[1]], lambda e: e.flip(0, 1)),
    ]
    for other, options, back in cases:
        got = _run(other.copy(), gamma, 0.2, 0.1, **options_of(tuple(options)), backend=backend)
        assert got[0] == pytest.approx(value, rel=1e-12, abs=1e-12) or got[0] == value
        assert_close(back(got[1]), visits, 1e-9, "gradient")
        assert_close(torch.stack(got[2:]), torch.stack(by_settings), 1e-9, "settings")


@given(seed=seeds(), n=st.integers(1, 7), m=st.integers(1, 7), warp=st.floats(0.01, 3))
def test_warp_cost_is_a_coordinate(seed: int, n: int, m: int, warp: float, backend: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(m, 3, generator=generator, dtype=torch.float64)
    value = soft_dtw(x, y, warp_cost=warp, backend=backend)
    more = torch.full((n, 1), math.sqrt(2 * warp), dtype=torch.float64)
    plain = soft_dtw(torch.cat([x, more], -1), torch.cat([y, torch.zeros(m, 1)], -1).double())
    assert value.item() == pytest.approx(plain.item() - (n + m) * warp, rel=1e-11, abs=1e-11)


def test_no_repeat_is_the_trace(backend: str) -> None:
    cost = torch.randn(5, 5, dtype=torch.float64)
    got = soft_dtw_from_cost(cost, repeat="", warp_cost=3.0, backend=backend)
    assert got.item() == pytest.approx(cost.trace().item())
    assert soft_dtw_from_cost(cost[:4], repeat="", backend=backend).item() == math.inf


def test_frames_with_tokens(backend: str) -> None:
    scores = torch.randn(3, 9, 4, dtype=torch.float64).log_softmax(-1)
    value = soft_dtw_from_cost(-scores, repeat="y", backend=backend)
    torch.testing.assert_close(value, forward_sum(scores), rtol=1e-12, atol=1e-12)
    hard = soft_dtw_alignment_from_cost(-scores, gamma=0.0, repeat="y", backend=backend)
    assert torch.equal(hard.expected, monotonic_alignment(scores))


def test_subsequence_by_its_own_recursion(backend: str) -> None:
    """The textbook's subsequence DTW: a first row without sums, the least of the last row."""
    cost = cost_of("normal", 4, 12, 3)
    total = cost.copy()
    for i in range(1, 4):
        total[i, 0] += total[i - 1, 0]
        for j in range(1, 12):
            total[i, j] += min(total[i - 1, j - 1], total[i - 1, j], total[i, j - 1])
    for j in range(1, 12):
        total[0, j] = min(cost[0, j], total[0, j - 1] + cost[0, j])
    value, *_ = _run(cost, 0.0, 0.0, 0.0, open_begin="y", open_end="y", backend=backend)
    for i in range(1, 4):  # the first row may also repeat the first frame of x
        for j in range(12):
            before = [total[i - 1, j]]
            before += [total[i - 1, j - 1], total[i, j - 1]] if j else []
            total[i, j] = cost[i, j] + min(before)
    assert value == pytest.approx(total[-1].min(), abs=1e-12)


@given(pattern=st.sampled_from(PATTERNS), seed=seeds())
def test_entropy_is_that_of_the_alignments(
    pattern: tuple[str, str, str], seed: int, backend: str
) -> None:
    cost = cost_of("normal", 3, 4, seed)
    truth = enumerate_paths(cost, 0.6, 0.2, 0.1, pattern)
    alignment = soft_dtw_alignment_from_cost(
        torch.from_numpy(cost),
        gamma=0.6,
        warp_cost=0.2,
        skip_cost=0.1,
        **options_of(pattern),
        backend=backend,
    )
    if math.isinf(truth.value):
        assert alignment.entropy.isnan()
    else:
        assert alignment.entropy.item() == pytest.approx(truth.entropy, abs=1e-10)
    assert_close(alignment.expected, truth.visits, 1e-9, "expected")


# Batches ------------------------------------------------------------------------------------------


@given(pattern=st.sampled_from(PATTERNS), seed=seeds(), gamma=st.sampled_from([0.0, 0.3]))
def test_lengths_and_settings_are_a_loop_over_items(
    pattern: tuple[str, str, str], seed: int, gamma: float, backend: str
) -> None:
    random = np.random.default_rng(seed)
    cost = torch.from_numpy(random.normal(size=(2, 3, 5, 6)))
    n = torch.from_numpy(random.integers(1, 6, size=(2, 3)))
    m = torch.from_numpy(random.integers(1, 7, size=(2, 3)))
    warp, skip = (torch.from_numpy(random.normal(size=(2, 3))) for _ in range(2))
    options = {**options_of(pattern), "gamma": gamma, "backend": backend}
    for item in np.ndindex(2, 3):
        cost[item][n[item] :], cost[item][:, m[item] :] = math.nan, math.nan
    leaf = cost.clone().requires_grad_()
    value = soft_dtw_from_cost(
        leaf, warp_cost=warp, skip_cost=skip, x_lengths=n, y_lengths=m, **options
    )
    by_cost = torch.autograd.grad(value, leaf, torch.ones_like(value))[0]
    for item in np.ndindex(2, 3):
        own = cost[item][: n[item], : m[item]].clone().requires_grad_()
        alone = soft_dtw_from_cost(own, warp_cost=warp[item], skip_cost=skip[item], **options)
        (of_it,) = torch.autograd.grad(alone, own)
        torch.testing.assert_close(value[item].detach(), alone.detach(), rtol=1e-13, atol=1e-13)
        whole = torch.zeros(5, 6, dtype=torch.float64)
        whole[: n[item], : m[item]] = of_it
        torch.testing.assert_close(by_cost[item], whole, rtol=0, atol=1e-12)


@given(repeat=st.sampled_from(SIDES), seed=seeds(), bandwidth=st.integers(0, 4))
def test_a_band_is_forbidden_pairs(repeat: str, seed: int, bandwidth: int, backend: str) -> None:
    cost = cost_of("normal", 6, 4, seed)
    i, j = np.mgrid[:6, :4]
    outside = (j - i < -2 - bandwidth) | (j - i > bandwidth)
    options = {"repeat": repeat, "backend": backend}
    banded = _run(cost, 0.5, 0.3, 0.0, bandwidth=bandwidth, **options)
    masked = _run(np.where(outside, math.inf, cost), 0.5, 0.3, 0.0, **options)
    for a, b in zip(banded, masked, strict=True):
        assert_close(a, b, 1e-12, repeat)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(dtype: torch.dtype, backend: str) -> None:
    x, y = torch.randn(2, 5, 3).to(dtype), torch.randn(3, 6, 3).to(dtype)
    for options in ({"warp_cost": 0.3}, {"open_end": "y"}, {"repeat": "x"}):
        got = soft_dtw(x, y, pairwise=True, **options, backend=backend)
        assert got.dtype == torch.float32
        truth = soft_dtw(x.double(), y.double(), pairwise=True, **options)
        torch.testing.assert_close(got.double(), truth, rtol=1e-6, atol=1e-5)


def test_a_nan_makes_its_item_nan(backend: str) -> None:
    cost = torch.randn(2, 3, 4, dtype=torch.float64)
    cost[1, 2, 0] = math.nan
    for options in ({"warp_cost": 0.3}, {"open_end": "y"}, {"repeat": "x"}):
        leaf, warp = cost.clone().requires_grad_(), number(0.1)
        arguments = {"warp_cost": warp, **options, "backend": backend}
        value = soft_dtw_from_cost(leaf, **arguments)
        assert value.isnan().tolist() == [False, True]
        assert leaf.grad is None
        by_cost, by_warp = torch.autograd.grad(
            value.sum(), (leaf, warp if len(options) else leaf), allow_unused=True
        )
        assert by_cost[1].isnan().all() and not by_cost[0].isnan().any()
        assert by_warp is None or by_warp.isnan()


# Derivatives of all kinds -------------------------------------------------------------------------

SOME = (
    {},
    {"repeat": "y"},
    {"open_begin": "x", "open_end": "xy"},
    {"repeat": "x", "open_begin": "xy", "open_end": "y"},
)


def _inputs() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    cost = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    return cost.requires_grad_(), number(0.6), number(0.3), number(0.2)


@pytest.mark.parametrize("options", SOME)
def test_gradcheck(options: dict[str, Any], backend: str) -> None:
    options = {**options, "backend": backend}

    def function(*inputs: Tensor) -> Tensor:
        return value_of(options, *inputs)

    assert torch.autograd.gradcheck(function, _inputs(), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, _inputs())


@given(pattern=st.sampled_from(PATTERNS), n=SIZES, m=SIZES, seed=seeds(), gamma=gammas(0.05))
def test_second_derivatives_are_those_of_the_reference(
    pattern: tuple[str, str, str], n: int, m: int, seed: int, gamma: float
) -> None:
    cost = torch.from_numpy(cost_of("normal", n, m, seed, 0.1))
    direction = torch.from_numpy(cost_of("normal", n, m, seed + 7))
    results = []
    for backend in ("reference", "numba"):
        leaves = cost.clone().requires_grad_(), *map(number, (gamma, 0.3, 0.2))
        value = value_of({**options_of(pattern), "backend": backend}, *leaves)
        finite = torch.where(value.isfinite(), value, 0)
        first = derivative(finite, *leaves, again=True)
        mixed = (first[0] * direction).sum() + 0.7 * first[1] + 0.4 * first[2] - 0.3 * first[3]
        results.append(derivative(mixed, *leaves))
    for one, two in zip(*results, strict=True):
        assert_close(two, one, 1e-9 + 1e-10 / gamma**2, "second derivative")


@pytest.mark.parametrize("options", SOME)
def test_functorch(options: dict[str, Any], backend: str) -> None:
    options = {**options, "backend": backend}
    cost, gamma, warp, skip = (t.detach() for t in _inputs())

    def function(cost: Tensor, warp: Tensor) -> Tensor:
        return value_of(options, cost, gamma, warp, skip)

    warps = torch.stack([warp, 2 * warp])
    loop = torch.stack([function(c, w) for c, w in zip(cost, warps, strict=True)])
    torch.testing.assert_close(vmap(function)(cost, warps), loop)
    rows = vmap(grad(function, (0, 1)))(cost, warps)
    for k in range(2):
        one = grad(function, (0, 1))(cost[k], warps[k])
        torch.testing.assert_close((rows[0][k], rows[1][k]), one)
    tangents = torch.randn_like(cost[0]), torch.ones_like(warp)
    value, along = jvp(function, (cost[0], warp), tangents)
    by_cost, by_warp = grad(function, (0, 1))(cost[0], warp)
    torch.testing.assert_close(along, (by_cost * tangents[0]).sum() + by_warp)


@pytest.mark.parametrize("options", SOME[1:3])
def test_compiled(options: dict[str, Any]) -> None:
    def function(cost: Tensor, warp: Tensor, skip: Tensor) -> Tensor:
        return value_of(options, cost, 0.6, warp, skip).sum()

    cost, _, warp, skip = _inputs()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    results = []
    for call in (function, compiled):
        value = call(cost, warp, skip)
        results.append((value, *torch.autograd.grad(value, (cost, warp, skip))))
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two)


def test_operators_are_as_torch_wants_them() -> None:
    cost, gamma, warp, skip = (t.detach() for t in _inputs())
    items = [t.expand(2) for t in (gamma, warp, skip)]
    weight = torch.ones(2, dtype=torch.float64)
    operators = torch.ops.softdtw_kernels
    for options in (("xy", "", ""), ("y", "x", "xy")):
        problem = cost, *items, None, None, None, *options
        tangents = cost, *items
        torch.library.opcheck(operators.pattern_value.default, problem)
        torch.library.opcheck(operators.pattern_gradient.default, (*problem, weight, True))
        args = *problem, weight, *tangents
        torch.library.opcheck(operators.pattern_hessian_product.default, args)
        leaves = [t.clone().requires_grad_() for t in (cost, *items)]
        value = operators.pattern_value(*leaves, *problem[4:])
        grads = torch.autograd.grad(value.sum(), leaves)
        direct = operators.pattern_gradient(*problem, weight, True)
        torch.testing.assert_close(grads, direct)


# Public functions ---------------------------------------------------------------------------------


def test_features_have_the_gradient_of_their_costs(backend: str) -> None:
    x = torch.randn(3, 5, 2, dtype=torch.float64, requires_grad=True)
    y = torch.randn(3, 6, 2, dtype=torch.float64)
    for pattern in (("xy", "", ""), ("y", "", "y"), ("xy", "xy", "x")):
        options = {**options_of(pattern), "gamma": 0.4, "warp_cost": 0.2, "skip_cost": 0.1}
        value = soft_dtw(x, y, **options, backend=backend)
        cost = (x[:, :, None] - y[:, None]).square().sum(-1)
        truth = soft_dtw_from_cost(cost, **options, backend="reference")
        torch.testing.assert_close(value, truth)
        finite = torch.where(truth.isfinite(), 1.0, 0.0).double()
        one, two = (torch.autograd.grad(v, x, finite, retain_graph=True) for v in (value, truth))
        torch.testing.assert_close(one, two)
        alignment = soft_dtw_alignment(x, y, **options, backend=backend)
        torch.testing.assert_close(alignment.value, value)


def test_skipped_frames_have_empty_rows() -> None:
    x = torch.tensor([[0.0], [1.0], [2.0]])
    series = torch.tensor([[9.0], [9.0], [0.0], [1.0], [2.0], [9.0]])
    found = soft_dtw_alignment(x, series, gamma=0.01, open_begin="y", open_end="y")
    assert found.path().tolist() == [[0, 2], [1, 3], [2, 4]]
    assert_close(found.expected.sum(0), [0, 0, 1, 1, 1, 0], 1e-4, "visits of frames")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_divergence(dtype: torch.dtype, backend: str) -> None:
    x = torch.randn(3, 5, 2, dtype=dtype, requires_grad=True)
    y, warp = torch.randn(3, 6, 2, dtype=dtype), number(0.4)
    same = soft_dtw_divergence(x, x, warp_cost=warp, backend=backend)
    assert same.tolist() == [0.0] * 3
    got = soft_dtw_divergence(x, y, warp_cost=warp, backend=backend)

    def value(a: Tensor, b: Tensor) -> Tensor:
        return soft_dtw(a.double(), b.double(), warp_cost=warp, backend=backend)

    truth = value(x, y) - value(x, x) / 2 - value(y, y) / 2
    torch.testing.assert_close(got, truth.to(dtype))
    one = torch.autograd.grad(got.sum(), (x, warp))
    two = torch.autograd.grad(truth.sum(), (x, warp))
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    pairs = soft_dtw_divergence(x, y, warp_cost=0.4, pairwise=True, backend=backend)
    torch.testing.assert_close(pairs.diagonal(), got)


def test_a_price_without_use_has_gradient_zero(backend: str) -> None:
    cost = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    skip = number(5.0)
    value = soft_dtw_from_cost(cost, skip_cost=skip, backend=backend)
    assert value.item() == pytest.approx(soft_dtw_from_cost(cost).item(), abs=1e-13)
    assert torch.autograd.grad(value, skip)[0].item() == 0.0
