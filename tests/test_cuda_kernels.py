"""The CUDA kernels, executed on the CPU by the emulator, against the oracles and the reference.

What the emulator checks is in cuda_emulator; here the results are compared, over drawn
shapes, lengths, bands, strides and values, and through each way of sharing out the work (families),
each with few and with many multiprocessors and little and much shared memory.
"""

from __future__ import annotations

import math
import re
import sys

import numpy as np
import oracles
import pytest
import torch
from cuda_calls import (
    ALIKE,
    FAMILIES,
    MANY,
    ONE,
    calls,
    check_against_oracle,
    check_values,
    costs_rounded_alike,
    inside,
    launchers,
    no_limits,
    wide_call,
)
from cuda_emulator import COMPILER, NO_COMPILER, EmulatorLauncher
from helpers import assert_close, examples
from hypothesis import given
from hypothesis import strategies as st
from strategies import make_cost

from softdtw_kernels import _reference as reference
from softdtw_kernels._cpu import operators as numba_cpu
from softdtw_kernels._cuda import distances, fields, lattice, smoothing
from softdtw_kernels._cuda.launcher import import_cupy
from softdtw_kernels._problem import Problem, Smoothing

pytestmark = pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)


@pytest.mark.parametrize("weak", [False, True])
@examples(60)
@given(data=st.data())
def test_value_and_gradient_match_the_oracle(data: st.DataObject, weak: bool) -> None:
    launcher = data.draw(launchers(checked=False))
    check_against_oracle(launcher, data.draw(calls(20 if weak else 40, weak)))


@pytest.mark.parametrize("shape", [(64, 64), (300, 6), (2, 450), (300, 1), (512, 512)], ids=str)
def test_float32_values_keep_their_bar_where_equal_costs_are_rounded_alike(
    shape: tuple[int, int],
) -> None:
    """What one cell loses is lost at all of them: it grows with the path, not with its root."""
    large = shape == (512, 512)
    for kind, gamma, dummy in ALIKE[:1] if large else ALIKE:
        cost = costs_rounded_alike(kind, shape, 3 if large else 12)
        check_values(lattice, cost, gamma, dummy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_value_near_zero_that_other_paths_hardly_change(dtype: torch.dtype) -> None:
    """Their share of Z is far below its rounding, and yet a tenth of the value."""
    cost = torch.tensor([[2.5092e-06, 1.3202], [1.3185, 1.8729e-06]], dtype=dtype)
    call = no_limits(cost, torch.tensor(0.1, dtype=torch.float64))
    truth = oracles.recursion(cost.double().numpy(), 0.1).value
    value = float(lattice.value(EmulatorLauncher(), Problem(**call)))
    assert abs(value - truth) <= (1e-6 if dtype == torch.float32 else 1e-12) * truth


@pytest.mark.parametrize("wall", [1e9, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_small_costs_decide_behind_masks_that_no_path_avoids(
    dtype: torch.dtype, wall: float
) -> None:
    cost = torch.rand(2, 30, 40, dtype=dtype, generator=torch.Generator().manual_seed(0))
    cost[:, 7:9] = wall
    for gamma in (0.0, 1e-3):
        gammas = torch.full((2,), gamma, dtype=torch.float64)
        check_against_oracle(EmulatorLauncher(MANY), no_limits(cost, gammas))


@pytest.mark.parametrize("weak", [False, True])
@examples(25)
@given(data=st.data())
def test_every_access_is_in_bounds_and_ordered(data: st.DataObject, weak: bool) -> None:
    launcher = data.draw(launchers(checked=True))
    check_against_oracle(launcher, data.draw(calls(12, weak)))


@pytest.mark.parametrize("weak", [False, True])
@examples(30)
@given(data=st.data())
def test_hessian_product_matches_the_cpu(data: st.DataObject, weak: bool) -> None:
    call = data.draw(calls(9, weak))
    launcher = data.draw(launchers(checked=data.draw(st.booleans())))
    cost = call["cost"]
    if not call["gamma"].all():
        return  # which of equal paths is taken is up to the engine
    lead, random = cost.shape[:-2], torch.Generator().manual_seed(data.draw(st.integers(0, 99)))

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=random)

    grad_value, tangent_cost = (normal(*shape).to(cost.dtype) for shape in (lead, cost.shape))
    of_parameters = normal(*lead), normal(*lead) if weak else None
    problem = Problem(**call)
    got = lattice.hessian_product(launcher, problem, grad_value, tangent_cost, *of_parameters)
    exact = problem._replace(cost=cost.double())
    truth = numba_cpu.hessian_product(
        exact, grad_value.double(), tangent_cost.double(), *of_parameters
    )
    bar = 2e-7 if cost.dtype == torch.float32 else 1e-9
    for name, a, b in zip(("value", "cost", "gamma", "dummy"), got, truth, strict=True):
        scale = 1 + b.abs().max().item() + truth[1].abs().sum().item()
        assert_close(a, b, bar * scale, name)


@pytest.mark.parametrize("where", ["all", "wall", "ends", "masks"])
@pytest.mark.parametrize("height", [1e6, 1e9, 1e30])
@pytest.mark.parametrize("weak", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_hessian_product_keeps_its_digits_beside_large_costs(
    dtype: torch.dtype, weak: bool, height: float, where: str
) -> None:
    """Along gamma too, and by it: neither depends on what every path pays."""
    random = np.random.default_rng(4)
    cost, direction = torch.from_numpy(random.normal(size=(2, 1, 9, 8))).to(dtype)
    if where == "all":
        cost = cost * height
    elif where == "wall":
        cost[0, 4] += height
    elif where == "ends":
        cost[0, [0, -1], [0, -1]] = height
    else:
        cost[torch.from_numpy(random.random(cost.shape) < 0.2)] = height
    one = torch.full((1,), 0.7, dtype=torch.float64)
    dummy = one * (height if where == "all" else 1) if weak else None
    problem = Problem(cost, one, dummy, None, None, None)
    along = torch.full_like(one, 1.3)
    given = torch.ones(1, dtype=dtype), direction, along, along if weak else None
    got = lattice.hessian_product(EmulatorLauncher(ONE), problem, *given)
    exact = problem._replace(cost=cost.double())
    doubles = (t if t is None else t.double() for t in given)
    truth = numba_cpu.hessian_product(exact, *doubles)
    for name, a, b in zip(("value", "cost", "gamma", "dummy"), got, truth, strict=True):
        scale = 1 + b.abs().max().item()
        assert_close(a, b, (2e-7 if dtype == torch.float32 else 1e-9) * scale, name)


@pytest.mark.parametrize("factor", [math.inf, -math.inf, math.nan])
def test_visits_that_are_no_float32_get_0_whatever_the_factor_is(factor: float) -> None:
    """The wide arithmetic has them in float64, where they are 1e-80."""
    cost = torch.tensor([[[1e12, 200.0], [0.0, 0.0]]])
    problem = Problem(**no_limits(cost, torch.ones(1, dtype=torch.float64)))
    gradient, *_ = lattice.gradient(EmulatorLauncher(MANY), problem, torch.tensor([factor]), False)
    assert gradient[0, 0, 1] == 0
    others = gradient.flatten()[[0, 2, 3]]
    assert others.isnan().all() if math.isnan(factor) else (others == factor).all()


@pytest.mark.parametrize("gamma", [0.2, 0.1, 0.05])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_small_entropy_has_its_digits(dtype: torch.dtype, gamma: float) -> None:
    """Of alignments along the diagonal, beside whose 1 the others are next to its rounding."""
    cost = torch.from_numpy(make_cost("normal", (1, 12, 12), 0)).abs().to(dtype)
    cost += 1 - torch.eye(12, dtype=dtype)
    problem = Problem(**no_limits(cost, torch.full((1,), gamma, dtype=torch.float64)))
    ones = torch.ones(1, dtype=dtype)
    _, by_gamma, _ = lattice.gradient(EmulatorLauncher(ONE), problem, ones, True)
    exact = problem._replace(cost=cost.double())
    _, truth, _ = numba_cpu.gradient(exact, ones.double(), True)
    assert truth < 0
    bar = 2e-5 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(by_gamma, truth, rtol=bar, atol=0.0)


@pytest.mark.parametrize("gamma", [1e-30, 1e-300, 5e-324])
def test_a_hessian_product_of_a_gamma_without_an_inverse(gamma: float) -> None:
    """One path, whose visits no direction changes."""
    random = torch.Generator().manual_seed(0)
    cost, direction = torch.rand(2, 1, 5, 6, dtype=torch.float64, generator=random)
    one = torch.ones(1, dtype=torch.float64)
    given = one, direction, one, None
    problem = Problem(**no_limits(cost, gamma * one))
    along, *products = lattice.hessian_product(EmulatorLauncher(ONE), problem, *given)
    visits, *_ = lattice.gradient(EmulatorLauncher(ONE), problem, one, False)
    torch.testing.assert_close(along, (visits * direction).sum((-2, -1)))
    assert not any(product.any() for product in products)


@examples(30)
@given(data=st.data())
def test_smoothing_and_its_gradient_match_the_reference(data: st.DataObject) -> None:
    call = data.draw(calls(40, True))
    launcher = data.draw(launchers(checked=data.draw(st.booleans())))
    cost = call["cost"]
    task = Smoothing(
        cost,
        call["gamma"],
        call["x_lengths"],
        call["y_lengths"],
        data.draw(st.sampled_from((1.0, 3.0))),
    )
    exact = task._replace(cost=cost.double())
    got = smoothing.smooth(launcher, task)
    truth = reference.smooth(exact)
    single = cost.dtype == torch.float32
    finite = truth.isfinite()
    assert torch.equal(got.isfinite(), finite)
    error = (got.double() - truth)[finite].abs() / (1 + truth[finite].abs())
    assert (error <= (1e-6 if single else 1e-12)).all()
    grad = torch.from_numpy(np.random.default_rng(1).normal(size=tuple(cost.shape))).to(cost.dtype)
    grad = torch.where(inside(call) & truth.isfinite(), grad, 0)
    got_cost, got_gamma = smoothing.smooth_vjp(launcher, task, grad)
    true_cost, true_gamma = reference.smooth_vjp(exact, grad.double())
    assert (got_cost.double() - true_cost).abs().max() <= (5e-5 if single else 1e-9)
    assert (
        (got_gamma - true_gamma).abs()
        <= (1e-5 if single else 1e-9) * cost.shape[-1] * cost.shape[-2]
    ).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (70, 65, 20), (64, 64, 16), (2, 130, 33)])
def test_squared_distances_come_from_differences(
    shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    n, m, d = shape
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2, 1, n, d, dtype=torch.float64, generator=random).to(dtype).expand(2, 3, n, d)
    y = torch.randn(3, m, d, dtype=torch.float64, generator=random).to(dtype).expand(2, 3, m, d)
    y = y.mT.contiguous().mT + 100
    for checked in (False, True):
        got = distances.squared_distances(EmulatorLauncher(checked=checked), x + 100, y)
        truth = reference.squared_distances((x + 100).double(), y.double())
        assert (
            (got.double() - truth).abs() <= (1e-5 if dtype == torch.float32 else 1e-13) * truth
        ).all()


@pytest.mark.parametrize(
    "bad", ["gamma", "negative gamma", "length", "zero length", "cost", "dummy"]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_out_of_range_makes_its_item_nan_and_no_other(bad: str, family: str) -> None:
    random = torch.Generator().manual_seed(0)
    weak = bad == "dummy"
    cost = torch.randn(3, 10, 150, generator=random)
    call: dict[str, object] = {
        "cost": cost.clone(),
        "gamma": torch.full((3,), 0.5, dtype=torch.float64),
        "dummy": torch.full((3,), 0.5, dtype=torch.float64) if weak else None,
        "x_lengths": torch.tensor([10, 7, 3]),
        "y_lengths": torch.tensor([150, 150, 20]),
        "bandwidth": None,
    }
    launcher = EmulatorLauncher(MANY, "random", True, family=family)
    ones = torch.ones(3)
    good = (
        lattice.value(launcher, Problem(**call)),
        *lattice.gradient(launcher, Problem(**call), ones, True),
    )
    if "gamma" in bad:
        call["gamma"][1] = -1.0 if bad == "negative gamma" else math.nan
    elif "length" in bad:
        call["x_lengths"][1] = 0 if bad == "zero length" else 11
    elif bad == "dummy":
        call["dummy"][1] = math.nan
    else:
        call["cost"][1, 6, 149] = math.nan
    value = lattice.value(launcher, Problem(**call))
    visits, in_gamma, in_dummy = lattice.gradient(launcher, Problem(**call), ones, True)
    assert value.isnan().tolist() == in_gamma.isnan().tolist() == [False, True, False]
    assert visits[1, :7].isnan().all()
    others = [0, 2]
    for before, after in zip(good, (value, visits, in_gamma, in_dummy), strict=True):
        assert torch.equal(before[others], after[others])


def test_padding_is_never_read_and_gets_gradient_zero() -> None:
    call = wide_call(False, 7)
    beyond = ~inside(call)
    plain = lattice.gradient(EmulatorLauncher(MANY), Problem(**call), torch.ones(2), True)
    call["cost"] = call["cost"].masked_fill(beyond, math.nan)
    filled = lattice.gradient(EmulatorLauncher(MANY), Problem(**call), torch.ones(2), True)
    for a, b in zip(plain, filled, strict=True):
        assert torch.equal(a, b)
    assert (filled[0][beyond] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_path_has_value_infinity_and_gradient_zero(dtype: torch.dtype) -> None:
    cost = torch.rand(2, 20, 150, dtype=dtype)
    cost[0, 10] = math.inf
    problem = Problem(**no_limits(cost, torch.ones(2, dtype=torch.float64)))
    for family in FAMILIES:
        launcher = EmulatorLauncher(MANY, checked=True, family=family)
        assert lattice.value(launcher, problem).isfinite().tolist() == [False, True]
        parts = lattice.gradient(launcher, problem, torch.ones(2, dtype=dtype), True)
        assert all((part[0] == 0).all() for part in parts)
        assert parts[0][1].sum() > 150 - 1e-3


@pytest.mark.parametrize("weak", [False, True])
@examples(20)
@given(data=st.data())
def test_path_matches_that_of_the_cpu(data: st.DataObject, weak: bool) -> None:
    call = data.draw(calls(12, weak))
    call["cost"] = call["cost"].double().round(decimals=2)
    problem = Problem(**call)
    got = lattice.path(data.draw(launchers(checked=False)), problem)
    truth = numba_cpu.path(problem)  # exact too where every path crosses masks of 1e30
    assert all(torch.equal(a, b) for a, b in zip(got, truth, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("gamma", [0.0, 1e-3, 1.0])
@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_what_is_no_number_makes_its_item_nan_whatever_else_is_wrong_with_it(
    bad: float, gamma: float, family: str
) -> None:
    """At gamma = 0, where -inf is the lowest cost, and beside costs that the fast arithmetic leaves
    to the other.
    """
    cost = torch.rand(3, 40, 100, generator=torch.Generator().manual_seed(1))
    cost[0, 3, 4] = bad
    cost[2, 3, 4], cost[2, 30, 50] = bad, -1e12
    problem = Problem(**no_limits(cost, torch.full((3,), gamma, dtype=torch.float64)))
    launcher = EmulatorLauncher(ONE, family=family)
    value = lattice.value(launcher, problem)
    visits, by_gamma, _ = lattice.gradient(launcher, problem, torch.ones(3), True)
    expected = bad if gamma == 0.0 else math.nan
    torch.testing.assert_close(value[[0, 2]], torch.full((2,), expected), equal_nan=True)
    assert value[1].isfinite()
    assert visits[[0, 2]].isnan().all() and not visits[1].isnan().any()
    assert by_gamma.isnan().tolist() == [True, False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_path_too_faint_for_the_fast_arithmetic_is_seen_on_a_bare_diagonal(
    family: str, dtype: torch.dtype
) -> None:
    cost = torch.full((1, 500, 500), math.inf, dtype=dtype)
    cost[0].diagonal().fill_(9e7 if dtype == torch.float32 else 1e9)
    call = no_limits(cost, torch.ones(1, dtype=torch.float64))
    value = lattice.value(EmulatorLauncher(MANY, family=family), Problem(**call))
    truth = cost[0].diagonal().double().sum().item()
    assert value.item() == pytest.approx(truth, rel=1e-6 if dtype == torch.float32 else 1e-12)


def test_long_paths_of_huge_costs_keep_their_visits() -> None:
    cost = torch.full((1, 1, 20_000), 1e30, dtype=torch.float64)
    call = no_limits(cost, torch.full((1,), 1e-7, dtype=torch.float64))
    ones = torch.ones(1, dtype=torch.float64)
    visits, *_ = lattice.gradient(EmulatorLauncher(ONE), Problem(**call), ones, True)
    assert (visits == 1).all()


def test_gamma_of_minus_zero_is_zero() -> None:
    cost = torch.zeros(1, 5, 6)
    results = []
    for gamma in (0.0, -0.0):
        call = no_limits(cost, torch.full((1,), gamma, dtype=torch.float64))
        launcher = EmulatorLauncher(ONE)
        check_against_oracle(launcher, call)
        results.append(lattice.gradient(launcher, Problem(**call), torch.ones(1), True))
    assert torch.equal(results[0][0], results[1][0])


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_a_hessian_product_reads_no_tangent_beside_the_matrix(layout: str) -> None:
    """Even where negative costs outweigh the cells outside."""
    cost = torch.full((1, 560, 33), -9e7)
    if layout == "transposed":
        cost = cost.mT.contiguous().mT
    one = torch.ones(1, dtype=torch.float64)
    problem = Problem(**no_limits(cost, one))
    launcher = EmulatorLauncher(ONE, checked=True, family="warp")
    lattice.hessian_product(launcher, problem, one.float(), torch.ones_like(cost), one, None)


@pytest.mark.parametrize("gamma", [1.0, 1e-3])
@pytest.mark.parametrize("kind", ["walk", "near"])
def test_float32_keeps_its_bar_over_a_long_path(kind: str, gamma: float) -> None:
    n = 700
    cost = torch.from_numpy(make_cost(kind, (n, n), 3)).float()
    problem = Problem(**no_limits(cost, torch.tensor(gamma, dtype=torch.float64)))
    exact = problem._replace(cost=cost.double())
    one = torch.ones(())
    single, *_ = lattice.gradient(EmulatorLauncher(MANY), problem, one, False)
    double, *_ = lattice.gradient(EmulatorLauncher(MANY), exact, one.double(), False)
    assert (single - double).abs().max() <= 5e-5
    value, truth = (float(lattice.value(EmulatorLauncher(MANY), p)) for p in (problem, exact))
    assert value == pytest.approx(truth, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "gamma"), [("band", 1e-2), ("forbidden", 1.0)])
def test_float32_keeps_its_bar_at_4096(limit: str, gamma: float) -> None:
    """Against the CPU kernels in float64 on the same float32 cost."""
    n = 4096
    random = np.random.default_rng(1)
    x, y = (random.normal(size=(n, 4)).cumsum(0) for _ in range(2))
    squares = (x * x).sum(1)[:, None] + (y * y).sum(1) - 2 * x @ y.T
    cost = torch.from_numpy(squares).float()
    call = no_limits(cost, torch.tensor(gamma, dtype=torch.float64))
    if limit == "band":
        call["bandwidth"] = n // 10
    else:
        walls = torch.from_numpy(random.random((n, n)) < 0.1)
        walls[0, 0] = walls[-1, -1] = False  # where every path begins and ends
        cost[walls] = math.inf
    problem = Problem(**call)
    exact = problem._replace(cost=cost.double())
    one = torch.ones((), dtype=torch.float64)
    truth, *_ = numba_cpu.gradient(exact, one, False)
    assert truth.sum() >= n
    launcher = EmulatorLauncher(family="warp")
    # From state, which has the bits of a gradient without: one sweep forward does for both.
    value, state = lattice.value_and_state(launcher, problem)
    visits, *_ = lattice.gradient(launcher, problem, one.float(), False, state)
    assert state.numel() and (visits - truth).abs().max() <= 5e-5
    assert float(value) == pytest.approx(float(numba_cpu.value(exact)), rel=1e-6)


def test_without_cupy_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    import_cupy.cache_clear()
    with pytest.raises(ImportError, match=r"softdtw-kernels\[cuda1[23]\]"):
        import_cupy()
    import_cupy.cache_clear()


def test_a_scalar_gamma_in_host_memory_is_passed_by_value() -> None:
    """What a 0-d gamma on the CPU becomes beside a cost on a GPU; here the device is pretended."""
    gamma = torch.tensor(0.25, dtype=torch.float64).expand(3, 2)
    form, number = fields.item_buffer(gamma, torch.device("meta"))
    of_gamma = fields.item_fields("gamma", form, number)
    assert of_gamma == {"gamma": None, "gamma_stride": 0, "gamma_number": 0.25}


def test_a_number_in_place_of_gamma_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """One recipe serves all numbers."""
    cost = torch.rand(3, 20, 40, generator=torch.Generator().manual_seed(1))

    def results() -> list[torch.Tensor]:
        gammas = [torch.tensor(g, dtype=torch.float64).expand(3) for g in (0.5, 0.25)]
        problems = [Problem(**no_limits(cost, gamma)) for gamma in gammas]
        return [lattice.value(EmulatorLauncher(MANY), problem) for problem in problems]

    truth = results()
    asked = []

    def read(tensor: torch.Tensor, device: torch.device) -> tuple[str, float]:
        asked.append(tensor)
        return fields.NUMBER, tensor[0].item()

    monkeypatch.setattr(fields, "item_buffer", read)
    assert all(torch.equal(a, b) for a, b in zip(truth, results(), strict=True))
    assert len(asked) == 2 and not torch.equal(*truth)


def test_every_field_of_a_launch_is_8_bytes_wide() -> None:
    """The host fills a kernel's struct with words of 8 bytes: it has nothing else."""
    for file, macro in (
        ("problem.cuh", "SOFTDTW_BATCH_FIELDS"),
        ("problem.cuh", "SOFTDTW_LATTICE_FIELDS"),
        ("smoothing.cu", "SOFTDTW_SMOOTHING_FIELDS"),
        ("distances.cu", "SOFTDTW_DISTANCE_FIELDS"),
        ("tiny.cu", "SOFTDTW_TINY_FIELDS"),
        ("tiny_exact.cu", "SOFTDTW_TINY_EXACT_FIELDS"),
    ):
        text = (fields.SOURCES / file).read_text()
        body = text[text.index(f"#define {macro}(X)") :].split("\n\n", 1)[0]
        declared = re.findall(r"X\(([^,]+), (\w+)\)", body)
        assert len(declared) == len(fields.own_field_names(file, macro)) > 0
        for kind, name in declared:
            assert kind.endswith("*") or kind in ("int64", "double"), (kind, name)
            assert (kind == "double") == (name in fields.DOUBLES), name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_weight_below_the_range_of_float32_is_not_rounded_to_a_subnormal_one(family: str) -> None:
    """exp(-cost / gamma) of 2^-141 has seven bits left, on a device that does not flush it to 0."""
    bits = [[20.8, 36.4], [39.6, 61.7], [51.3, 75.4], [65.0, 84.3], [96.3, 128.5], [103.6, 141.7]]
    cost = torch.tensor([bits]) * (0.01 * math.log(2.0))
    call = no_limits(cost, torch.tensor([0.01], dtype=torch.float64))
    truth = float(reference.value(Problem(**{**call, "cost": cost.double()})))
    got = float(lattice.value(EmulatorLauncher(MANY, family=family), Problem(**call)))
    assert abs(got - truth) <= 1e-6 * truth
