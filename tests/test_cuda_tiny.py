"""The CUDA kernels for many small pairs, executed on the CPU by the emulator, against the oracles.

A thread does a whole pair here:
what matters is the shape against the columns compiled in, the strides (rows read in vectors or
not), how far numbers lie apart, and which items are left to the slow kernel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import oracles
import pytest
import torch
from cuda_calls import (
    ALIKE,
    abs_difference,
    calls,
    check_against_oracle,
    check_values,
    costs_rounded_alike,
    inside,
    items,
    launchers,
    no_limits,
)
from cuda_emulator import COMPILER, NO_COMPILER, SCHEDULES, EmulatorLauncher
from helpers import examples
from hypothesis import assume, given
from hypothesis import strategies as st

from softdtw_kernels._cpu import operators as numba_cpu
from softdtw_kernels._cuda import tiny
from softdtw_kernels._cuda.operators import Operators
from softdtw_kernels._cuda.recipe import Argument
from softdtw_kernels._problem import Problem, SmoothedProblem

pytestmark = pytest.mark.skipif(COMPILER is None, reason=NO_COMPILER)

BOTH = ["tiny", "tiny_exact"]


@pytest.fixture(autouse=True, scope="module")
def any_number_of_pairs() -> Iterator[None]:
    """Batches as small as those of the other kernels' tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "PAIRS_OF_MULTIPROCESSOR", 0)
        yield


@st.composite
def small_calls(draw: st.DrawFn, weak: bool) -> dict[str, object]:
    call = draw(calls(draw(st.sampled_from((4, 8, 8, 16))), weak))
    assume(max(call["cost"].shape[-2:]) <= tiny.COLUMNS[call["cost"].dtype][-1])
    return call


def sources(launcher: EmulatorLauncher) -> list[str]:
    return [source for source, _, _ in launcher.launches]


@pytest.mark.parametrize("weak", [False, True])
@examples(50)
@given(data=st.data())
def test_value_and_gradient_match_the_oracle(data: st.DataObject, weak: bool) -> None:
    launcher = data.draw(launchers(checked=False))
    check_against_oracle(launcher, data.draw(small_calls(weak)), tiny, with_parameters=False)
    assert sources(launcher) == 2 * BOTH


@pytest.mark.parametrize(
    "cost", [[[3.4558e-07]], [[2.5092e-06, 1.3202], [1.3185, 1.8729e-06]]], ids=["one", "four"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_near_zero_keep_their_digits(dtype: torch.dtype, cost: list[list[float]]) -> None:
    call = no_limits(torch.tensor(cost, dtype=dtype), torch.empty((), dtype=torch.float64))
    for gamma in (1e-3, 0.1):
        call["gamma"].fill_(gamma)
        truth = oracles.recursion(call["cost"].double().numpy(), gamma).value
        value = float(tiny.value(EmulatorLauncher(), Problem(**call)))
        assert abs(value - truth) <= (1e-6 if dtype == torch.float32 else 1e-12) * truth


@pytest.mark.parametrize("shape", [(8, 8), (16, 16), (16, 1), (3, 8)], ids=str)
def test_float32_values_keep_their_bar_where_equal_costs_are_rounded_alike(
    shape: tuple[int, int],
) -> None:
    for kind, gamma, dummy in ALIKE:
        check_values(tiny, costs_rounded_alike(kind, shape, 40), gamma, dummy)


@pytest.mark.parametrize("weak", [False, True])
@examples(12)
@given(data=st.data())
def test_every_access_is_in_bounds_and_ordered(data: st.DataObject, weak: bool) -> None:
    launcher = data.draw(launchers(checked=True))
    check_against_oracle(launcher, data.draw(calls(8, weak)), tiny, with_parameters=False)


def check_smoothed(launcher: EmulatorLauncher, call: dict[str, object], count: float) -> None:
    """S2DTW of each item, and its gradient through the smoothing, against the oracle."""
    cost, single = call["cost"], call["cost"].dtype == torch.float32
    *fields, bandwidth = Problem(**call)
    assert bandwidth is None
    problem, on_cuda = SmoothedProblem(*fields, count), Operators(lambda _: launcher)
    value = on_cuda.smoothed_value(problem)
    scale = torch.linspace(-1, 2, max(1, value.numel()), dtype=cost.dtype).view(value.shape)
    grad, _, _ = on_cuda.smoothed_gradient(problem, scale, False)
    assert sources(launcher) == 2 * BOTH
    assert grad.stride() == torch.empty_like(cost).stride()
    assert (grad[~inside(call)] == 0).all()
    hard = None
    for index, real, gamma in items(call):
        dummy = None if call["dummy"] is None else float(call["dummy"][index])
        smoothed = oracles.smooth(real, gamma, count)
        lattice = smoothed if dummy is None else oracles.weak_lattice(smoothed, dummy)
        truth = oracles.recursion(lattice, gamma)
        size = oracles.value_scale(truth, lattice, gamma) if truth.value < math.inf else 1.0
        # The terms of a smoothed cost may cancel.
        finite = np.abs(real[np.isfinite(real) & (np.abs(real) < 1e8)])
        size = max(size, finite.max(initial=0.0))
        error = abs_difference(float(value[index]), truth.value)
        assert error <= (1e-6 if single else 1e-12) * size, (index, gamma, truth.value)
        n, m = real.shape
        if gamma > 0:
            expected = oracles.s2dtw(real, gamma, True, dummy, count).by_cost
        else:  # ties: as the CPU breaks them
            exact = problem._replace(cost=cost.double())
            ones = torch.ones_like(scale, dtype=torch.float64)
            hard = hard or numba_cpu.smoothed_gradient(exact, ones, False)
            expected = hard[0][index][:n, :m].numpy()
        tolerance = 5e-5 if single else oracles.gradient_tolerance(real, gamma)
        error = np.abs(grad[index][:n, :m].double().numpy() - float(scale[index]) * expected).max()
        assert error <= 3 * 2 * tolerance, (index, gamma)  # scale is up to 2


@pytest.mark.parametrize("weak", [False, True])
@examples(50)
@given(data=st.data())
def test_smoothed_value_and_gradient_match_the_oracle(data: st.DataObject, weak: bool) -> None:
    launcher = data.draw(launchers(checked=False))
    call = {**data.draw(small_calls(weak)), "bandwidth": None}
    check_smoothed(launcher, call, data.draw(st.sampled_from((1.0, 3.0, 1e-40))))


@pytest.mark.parametrize("weak", [False, True])
@examples(12)
@given(data=st.data())
def test_every_access_of_the_smoothing_is_in_bounds(data: st.DataObject, weak: bool) -> None:
    launcher = data.draw(launchers(checked=True))
    call = {**data.draw(calls(8, weak)), "bandwidth": None}
    check_smoothed(launcher, call, data.draw(st.sampled_from((1.0, 3.0))))


def all_pairs(sequences: int, dtype: torch.dtype = torch.float32, frames: int = 8) -> torch.Tensor:
    """Shifted cosines as one matrix product gives them: (A, A, frames, frames), a view."""
    random = torch.Generator().manual_seed(sequences)
    x, y = torch.randn(2, sequences * frames, 16, dtype=torch.float64, generator=random)
    x, y = (torch.nn.functional.normalize(z, dim=-1) for z in (x, y))
    cost = -(x @ y.T).to(dtype).view(sequences, frames, sequences, frames)
    return cost.transpose(1, 2)


def per_pair(cost: torch.Tensor, number: float) -> torch.Tensor:
    return torch.tensor(number, dtype=torch.float64).expand(cost.shape[:-2])


def problem_of(
    cost: torch.Tensor,
    gamma: torch.Tensor,
    dummy: torch.Tensor | None,
    x_lengths: torch.Tensor | None,
    y_lengths: torch.Tensor | None,
    smoothing: bool,
) -> Problem | SmoothedProblem:
    fields = cost, gamma, dummy, x_lengths, y_lengths
    return SmoothedProblem(*fields, 1.0) if smoothing else Problem(*fields, None)


class FastKernelAlone(EmulatorLauncher):
    """What the slow kernel would do stays as it is: NaN."""

    def launch(
        self,
        source: str,
        options: Sequence[str],
        grid: int,
        block: int,
        shared_bytes: int,
        fields: Sequence[Argument],
    ) -> None:
        if source != "tiny_exact":
            super().launch(source, options, grid, block, shared_bytes, fields)
            self.left = int(fields[-1].view(torch.int32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gamma", [1e-3, 1e-2, 0.1, 1.0])
def test_no_pair_of_a_video_and_a_text_is_left_to_the_slow_kernel(
    gamma: float, dtype: torch.dtype
) -> None:
    cost = all_pairs(9, dtype)
    cost[0, 0] = -1  # collapsed captions: the widest range
    problem = SmoothedProblem(cost, per_pair(cost, gamma), per_pair(cost, 0.5), None, None, 1.0)
    launcher = FastKernelAlone()
    on_cuda = Operators(lambda _: launcher)
    ones = torch.ones(cost.shape[:-2], dtype=dtype)
    value = on_cuda.smoothed_value(problem)
    assert launcher.left == 0
    grad = on_cuda.smoothed_gradient(problem, ones, False)[0]
    assert launcher.left == 0
    exact = problem._replace(cost=cost.double())
    true_grad = numba_cpu.smoothed_gradient(exact, ones.double(), False)[0]
    single = dtype == torch.float32
    torch.testing.assert_close(
        value.double(), numba_cpu.smoothed_value(exact), rtol=1e-6 if single else 1e-12, atol=1e-12
    )
    assert (grad.double() - true_grad).abs().max() <= (1e-5 if single else 1e-10)


@pytest.mark.parametrize("dummy", [0.5, 0.0, -0.5])
@pytest.mark.parametrize("dear", [0.05, 0.3, 1.2])
def test_cheap_cells_beside_dear_ones_lose_no_path(dear: float, dummy: float) -> None:
    """Where numbers are far apart: whole rows or columns are dear but for a few cells, some of them
    around what is cheap, some of them beside dummy cells that the cheap ones dwarf.
    """
    random = torch.Generator().manual_seed(2)
    index = torch.arange(144) % 8
    rows = index[:, None, None] <= torch.arange(8)[None, :, None]
    pattern = torch.cat((rows.expand(144, 8, 8), rows.mT.expand(144, 8, 8)))
    cheap = pattern ^ (torch.rand(288, 8, 8, generator=random) < 0.1)
    cost = torch.where(cheap, torch.tensor(-1.2), torch.tensor(dear))
    problem = SmoothedProblem(cost, per_pair(cost, 0.1), per_pair(cost, dummy), None, None, 1.0)
    ones = torch.ones(288)
    launcher = FastKernelAlone()
    on_cuda = Operators(lambda _: launcher)
    value = on_cuda.smoothed_value(problem)
    grad = on_cuda.smoothed_gradient(problem, ones, False)[0]
    exact = problem._replace(cost=cost.double())
    true_grad = numba_cpu.smoothed_gradient(exact, ones.double(), False)[0]
    assert (grad.double() - true_grad).abs().max() <= 1e-5
    # Costs of either sign may cancel.
    assert (value.double() - numba_cpu.smoothed_value(exact)).abs().max() <= 1e-6 * 8


@pytest.mark.parametrize("weak", [False, True])
@pytest.mark.parametrize("smoothing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_right_on_both_sides_of_every_change_of_arithmetic(
    dtype: torch.dtype, smoothing: bool, weak: bool
) -> None:
    """From gamma 1, where plain floats hold the whole lattice, to 0.02, where no arithmetic but the
    general one will do: of some pairs the numbers are just near enough to each other.
    """
    random = torch.Generator().manual_seed(3)
    count = 600
    gamma = 0.02 * 50 ** torch.rand(count, generator=random, dtype=torch.float64)
    dummy = 2 * torch.rand(count, generator=random, dtype=torch.float64) - 0.3 if weak else None
    shift, spread, share = torch.rand(3, count, 1, 1, generator=random, dtype=torch.float64)
    noise = torch.rand(count, 8, 8, generator=random, dtype=torch.float64)
    noise[::2] = (noise < share)[::2].double()
    cost = (3 * shift - 2 + 3 * spread**2 * noise).to(dtype)
    ones = torch.ones(count, dtype=dtype)
    gradient = "smoothed_gradient" if smoothing else "gradient"
    problem = problem_of(cost, gamma, dummy, None, None, smoothing)
    exact = problem._replace(cost=cost.double())
    on_cuda = Operators(lambda _: EmulatorLauncher())
    found = getattr(on_cuda, gradient)(problem, ones, False)[0]
    true = getattr(numba_cpu, gradient)(exact, ones.double(), False)[0]
    assert (found.double() - true).abs().max() <= (1e-5 if dtype == torch.float32 else 1e-11)


@pytest.mark.parametrize("frames", [8, 16])
def test_results_are_the_same_to_the_bit_however_the_work_is_shared_out(frames: int) -> None:
    cost = all_pairs(14, frames=frames)
    cost[3, 4, 2, 1] = 1e30
    cost[5, 6, 1, 1] = -1e9  # for the slow kernel
    problem = SmoothedProblem(cost, per_pair(cost, 0.1), per_pair(cost, 0.5), None, None, 1.0)
    ones = torch.ones(cost.shape[:-2])
    results = set()
    for multiprocessors in (1, 64):
        for schedule in sorted(SCHEDULES):
            launcher = EmulatorLauncher(multiprocessors, schedule, False)
            on_cuda = Operators(lambda _, launcher=launcher: launcher)
            value = on_cuda.smoothed_value(problem)
            grad = on_cuda.smoothed_gradient(problem, ones, False)[0]
            assert grad.stride() == cost.stride()
            results.add(value.numpy().tobytes() + grad.numpy().tobytes())
    assert len(results) == 1


@pytest.mark.parametrize("weak", [False, True])
def test_rows_read_in_vectors_give_the_same_bits(weak: bool) -> None:
    together = all_pairs(6)
    memory = torch.full((together.numel() + 1,), math.nan)
    apart = memory[1:].view(6, 6, 8, 8).copy_(together)  # 4 bytes off the alignment
    limits = per_pair(together, 0.1), per_pair(together, 0.5) if weak else None, None, None, None
    results = []
    for cost in (together, together.contiguous(), apart):
        launcher = EmulatorLauncher(checked=True)
        problem = Problem(cost, *limits)
        grad = tiny.gradient(launcher, problem, torch.ones(6, 6))
        results.append((tiny.value(launcher, problem), grad.contiguous()))
        aligned = cost is not apart
        options = {o for _, every, _ in launcher.launches for o in every if "VECTORS" in o}
        # The gradient has memory of its own, aligned; both must be for vectors.
        assert options == {f"-DWITH_VECTORS={int(aligned)}"}
    for value, grad in results[1:]:
        assert torch.equal(value, results[0][0])
        assert torch.equal(grad, results[0][1])


def test_padding_is_never_read_and_gets_gradient_zero() -> None:
    cost = all_pairs(5)
    random = torch.Generator().manual_seed(1)
    lengths = [torch.randint(1, 9, (5, 5), generator=random) for _ in range(2)]
    call = {"cost": cost, "x_lengths": lengths[0], "y_lengths": lengths[1], "bandwidth": None}
    beyond = ~inside(call)
    plain = SmoothedProblem(cost, per_pair(cost, 0.1), per_pair(cost, 0.5), *lengths, 1.0)
    padded = plain._replace(cost=cost.masked_fill(beyond, math.nan))
    on_cuda = Operators(lambda _: EmulatorLauncher(checked=True))
    of_plain, filled = (
        on_cuda.smoothed_gradient(problem, torch.ones(5, 5), False)[0]
        for problem in (plain, padded)
    )
    assert torch.equal(of_plain.contiguous(), filled)
    assert (filled[beyond] == 0).all()
    assert torch.equal(*(on_cuda.smoothed_value(problem) for problem in (plain, padded)))


@pytest.mark.parametrize(
    "bad", ["gamma", "negative gamma", "length", "zero length", "cost", "-inf", "dummy"]
)
@pytest.mark.parametrize("smoothing", [False, True])
def test_what_is_out_of_range_makes_its_item_nan_and_no_other(bad: str, smoothing: bool) -> None:
    cost = all_pairs(6)[0].contiguous()
    gamma, dummy = (torch.full((6,), x, dtype=torch.float64) for x in (0.1, 0.5))
    lengths = torch.tensor([8, 7, 3, 8, 1, 2]), torch.tensor([8, 8, 2, 1, 5, 8])

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        launcher = EmulatorLauncher(schedule="random", checked=True)
        problem = problem_of(cost, gamma, dummy, *lengths, smoothing)
        on_cuda = Operators(lambda _: launcher)
        value, grad = (
            (on_cuda.smoothed_value, on_cuda.smoothed_gradient)
            if smoothing
            else (on_cuda.value, on_cuda.gradient)
        )
        return value(problem), grad(problem, torch.ones(6), False)[0]

    good = run()
    if "gamma" in bad:
        gamma[1] = -1.0 if bad == "negative gamma" else math.nan
    elif "length" in bad:
        lengths[0][1] = 0 if bad == "zero length" else 9
    elif bad == "dummy":
        dummy[1] = math.nan
    else:
        cost[1, 6, 5] = math.nan if bad == "cost" else -math.inf
    after = run()
    assert after[0].isnan().tolist() == [False, True, False, False, False, False]
    assert after[1][1, :7].isnan().all()
    others = [0, 2, 3, 4, 5]
    for a, b in zip(good, after, strict=True):
        assert torch.equal(a[others], b[others])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_path_has_value_infinity_and_gradient_zero(dtype: torch.dtype) -> None:
    cost = torch.rand(3, 7, 8, dtype=dtype)
    cost[1, 3] = math.inf
    launcher = EmulatorLauncher(checked=True)
    problem = Problem(**no_limits(cost, torch.full((3,), 0.1, dtype=torch.float64)))
    assert tiny.value(launcher, problem).isfinite().tolist() == [True, False, True]
    ones = torch.tensor([1.0, math.nan, 1.0], dtype=dtype)
    grad = tiny.gradient(launcher, problem, ones)
    assert (grad[1] == 0).all()
    assert (grad[[0, 2]].sum((-2, -1)) >= 8 - 1e-5).all()


@pytest.mark.parametrize("smoothing", [False, True])
def test_few_pairs_large_pairs_and_gradients_in_parameters_go_to_the_other_kernels(
    monkeypatch: pytest.MonkeyPatch, smoothing: bool
) -> None:
    monkeypatch.setattr(tiny, "PAIRS_OF_MULTIPROCESSOR", 16)

    def used(cost: torch.Tensor, with_parameters: bool) -> set[str]:
        launcher = EmulatorLauncher(multiprocessors=2)
        items = per_pair(cost, 0.1), per_pair(cost, 0.5)
        problem = problem_of(cost, *items, None, None, smoothing)
        ones = torch.ones(cost.shape[:-2])
        on_cuda = Operators(lambda _: launcher)
        gradient = on_cuda.smoothed_gradient if smoothing else on_cuda.gradient
        grads.append(gradient(problem, ones, with_parameters)[0])
        on_another = Operators(lambda _: EmulatorLauncher(multiprocessors=2))
        value = on_another.smoothed_value if smoothing else on_another.value
        values.append(value(problem))
        return set(sources(launcher))

    grads: list[torch.Tensor] = []
    values: list[torch.Tensor] = []
    others = {"smoothing", "lattice"} if smoothing else {"lattice"}
    cost = all_pairs(6)
    assert used(cost, False) == set(BOTH)
    assert used(cost, True) == others
    assert used(cost[0], False) == others  # 6 pairs
    assert used(all_pairs(6, frames=17), False) == others
    # And both kinds agree.
    assert (grads[0] - grads[1]).abs().max() <= 1e-5
    assert (values[0][0] - values[2]).abs().max() <= 1e-5
