"""What the CPU kernels compute from features, beside the same through a cost matrix in memory."""

from __future__ import annotations

import sys

import pytest
import torch
from helpers import PEAK_MEMORY, Forks, bits
from torch import Tensor

from softdtw_kernels import soft_dtw
from softdtw_kernels._checks import KINDS
from softdtw_kernels._cpu import features as engine
from softdtw_kernels._operators import compositions, from_features, kernels, ops
from softdtw_kernels._problem import FeatureProblem

SHAPES = [(5, 4, 3), (33, 140, 1), (300, 257, 4), (64, 65, 33), (1, 200, 2)]
ALL = (True, True, True)


def problem(
    pairs: int,
    shape: tuple[int, int, int],
    dtype: torch.dtype = torch.float64,
    kind: str = "sqeuclidean",
    gamma: float = 1.0,
    bandwidth: int | None = None,
    lengths: bool = False,
) -> FeatureProblem:
    random = torch.Generator().manual_seed(sum(shape))
    n, m, size = shape
    x, y = (
        torch.randn(pairs, k, size, dtype=torch.float64, generator=random).to(dtype) for k in (n, m)
    )
    of_x = of_y = None
    if lengths:
        of_x, of_y = (torch.randint(1, k + 1, (pairs,), generator=random) for k in (n, m))
    factor = torch.linspace(1, 1.5, pairs, dtype=torch.float64)
    return FeatureProblem(x, y, gamma * factor, of_x, of_y, bandwidth, kind)


def compare(
    given: FeatureProblem, value: float, gradient: float, dtype: torch.dtype = torch.float64
) -> None:
    """Relative error of the values, and of gradients beside the largest; the truth in `dtype`.

    Of the kernels, which the operators ask only where these take less time.
    """
    weight = torch.linspace(-1, 2, len(given.x), dtype=given.x.dtype)
    got = engine.value(given), *engine.gradient(given, weight, ALL)
    wide = given._replace(x=given.x.to(dtype), y=given.y.to(dtype))
    truth = (
        compositions.fused_value(wide),
        *compositions.fused_gradient(wide, weight.to(dtype), *ALL),
    )
    torch.testing.assert_close(got[0].to(dtype), truth[0], rtol=value, atol=0.0, equal_nan=True)
    for a, b in zip(got[1:3], truth[1:3], strict=True):
        assert a.dtype == given.x.dtype
        scale = max(1.0, b.nan_to_num().abs().max().item())
        torch.testing.assert_close(a.to(dtype), b, rtol=0.0, atol=gradient * scale, equal_nan=True)
    assert got[3].dtype == torch.float64
    torch.testing.assert_close(got[3], truth[3], rtol=1e-4, atol=100 * gradient, equal_nan=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bandwidth", [None, 0, 25])
@pytest.mark.parametrize("lengths", [False, True])
def test_it_is_soft_dtw_of_the_cost_matrix(
    kind: str, shape: tuple[int, int, int], bandwidth: int | None, lengths: bool
) -> None:
    for gamma in (1.0, 0.05):
        given = problem(3, shape, torch.float64, kind, gamma, bandwidth, lengths)
        compare(given, 1e-12, 1e-11)
        single = problem(3, shape, torch.float32, kind, gamma, bandwidth, lengths)
        compare(single, 1e-6, 2e-5)


@pytest.mark.parametrize("gamma", [1.0, 0.01, 0.001])
@pytest.mark.parametrize("kind", KINDS)
def test_float32_gradients_of_long_walks(kind: str, gamma: float) -> None:
    """Most tiles have no mass, and of a pair this long no weights are kept."""
    given = problem(1, (1500, 1400, 2), torch.float32, kind, gamma)
    compare(given._replace(x=given.x.cumsum(1), y=given.y.cumsum(1)), 1e-6, 5e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("far", [3e4, 1e12])
def test_features_far_apart_for_gamma(kind: str, far: float) -> None:
    """float32 is not certified there, nor float64 further away: those are costs of float32."""
    given = problem(3, (70, 60, 2), torch.float32, kind, gamma=0.01)
    x = given.x.clone()
    x[1] *= far
    compare(given._replace(x=x), 1e-6, 2e-5, torch.float64 if far < 1e6 else torch.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_features_that_are_no_numbers(kind: str, dtype: torch.dtype) -> None:
    """As of the matrix: NaN everywhere if a cost is, no path through an infinite distance."""
    given = problem(6, (70, 60, 2), dtype, kind)
    x, y = given.x.clone(), given.y.clone()
    x[0, 3, 1] = torch.nan
    x[2, 40, 0] = torch.inf
    y[3, 58, 0] = -torch.inf
    y[4] = torch.nan
    given = given._replace(x=x, y=y)
    assert ops.fused_value(*given)[[1, 5]].isfinite().all()
    compare(given, 1e-6, 2e-5, dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_padding_is_never_read(kind: str, dtype: torch.dtype) -> None:
    given = problem(2, (70, 60, 3), dtype, kind, lengths=True)
    x, y = given.x.clone(), given.y.clone()
    for k in range(2):
        x[k, given.x_lengths[k] :] = torch.nan
        y[k, given.y_lengths[k] :] = torch.inf
    padded = given._replace(x=x, y=y)
    ones = torch.ones(2, dtype=dtype)
    assert bits(ops.fused_value(*padded)) == bits(ops.fused_value(*given))
    for a, b in zip(*(ops.fused_gradient(*p, ones, *ALL) for p in (padded, given)), strict=True):
        assert bits(a) == bits(b)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gamma_zero_of_all_or_some(kind: str, dtype: torch.dtype) -> None:
    given = problem(4, (70, 60, 2), dtype, kind)
    for gamma in (torch.zeros(4), torch.tensor([0.0, 1.0, 1e-30, 0.1])):
        compare(given._replace(gamma=gamma.double()), 1e-6, 2e-5, dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape, bandwidth", [((700, 640, 2), 7), ((520, 520, 1), 0)], ids=str)
def test_gamma_zero_in_a_narrow_band(
    kind: str, dtype: torch.dtype, shape: tuple[int, int, int], bandwidth: int
) -> None:
    """Of which the costs alone are stored."""
    given = problem(4, shape, dtype, kind, bandwidth=bandwidth, lengths=True)
    given.x[2] = given.y[2, :1]  # all costs of a row are equal
    given.x[3, 0], given.x_lengths[3], given.y_lengths[3] = torch.nan, shape[0], shape[1]
    for gamma in (torch.zeros(4), torch.tensor([0.0, 1.0, 0.0, 0.1])):
        compare(given._replace(gamma=gamma.double()), 1e-6, 2e-5, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bits_depend_on_nothing_but_the_pair(dtype: torch.dtype) -> None:
    """Not on its place, on threads, or on whether features are shared in memory."""
    given = problem(7, (100, 90, 3), dtype, gamma=0.3, lengths=True)
    ones = torch.ones(7, dtype=dtype)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append([ops.fused_value(*given), *ops.fused_gradient(*given, ones, *ALL)])
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(bits(a) == bits(b) for a, b in zip(results[0], other, strict=True))
    for k in (0, 6):
        tensors = (t[k : k + 1] for t in given[:5])
        alone = FeatureProblem(*tensors, *given[5:])
        its = [ops.fused_value(*alone), *ops.fused_gradient(*alone, ones[:1], *ALL)]
        assert all(bits(a[k]) == bits(b[0]) for a, b in zip(results[0], its, strict=True))
    shared = given._replace(x=given.x[:1].expand_as(given.x))
    copied = shared._replace(x=shared.x.clone())
    for a, b in zip(*(ops.fused_gradient(*p, ones, *ALL) for p in (shared, copied)), strict=True):
        assert bits(a) == bits(b)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bandwidth", [None, 300])
def test_threads_share_a_long_pair(kind: str, dtype: torch.dtype, bandwidth: int | None) -> None:
    """Strip by strip, to the same bits."""
    given = problem(1, (1100, 1000, 3), dtype, kind, 0.5, bandwidth, lengths=True)
    given = given._replace(x_lengths=torch.tensor([1090]), y_lengths=torch.tensor([970]))
    ones = torch.ones(1, dtype=dtype)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3, 7, 2, 7):
        torch.set_num_threads(threads)
        results.append([ops.fused_value(*given), *ops.fused_gradient(*given, ones, *ALL)])
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(bits(a) == bits(b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("cost", ["sqeuclidean", "cosine", "shifted_cosine", "negative_dot"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_pairs(cost: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(1)
    x = torch.randn(3, 80, 4, generator=random).to(dtype).requires_grad_()
    y = torch.randn(4, 70, 4, generator=random).to(dtype).requires_grad_()
    gamma = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

    def run() -> tuple[Tensor, ...]:
        value = soft_dtw(x, y, gamma=gamma, cost=cost, pairwise=True)
        return value.detach(), *torch.autograd.grad(value.sum(), (x, y, gamma))

    got = run()
    monkeypatch.setattr(from_features, "MOST_WORK", 0.0)
    close = {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {}
    for a, b in zip(got, run(), strict=True):
        torch.testing.assert_close(a, b, **close)


def test_a_value_keeps_its_gradients() -> None:
    given = problem(2, (70, 60, 2), lengths=True)
    weight = torch.tensor([2.0, -1.0], dtype=torch.float64)
    truth = ops.fused_gradient(*given, weight, *ALL)
    for due in (ALL, (True, False, False), (False, True, False), (False, False, True)):
        flags = zip(given[:3], due, strict=True)
        tensors = [t.clone().requires_grad_(is_due) for t, is_due in flags]
        value, state = kernels.fused_value_and_state(FeatureProblem(*tensors, *given[3:]))
        assert bits(value) == bits(ops.fused_value(*given))
        # What is not kept is computed.
        for wanted in (due, ALL):
            got = ops.fused_gradient_from_state(*given, state, weight, *wanted)
            for a, b, is_wanted in zip(got, truth, wanted, strict=True):
                if is_wanted:
                    torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-14)
        with pytest.raises(ValueError, match="the state of such a call has"):
            ops.fused_gradient_from_state(*given, state[:-8].clone(), weight, *due)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gamma", [1.0, 1e-2])
def test_gradients_do_not_depend_on_whether_values_are_returned(
    gamma: float, dtype: torch.dtype
) -> None:
    """Of values near 0, which take other kernels, least of all."""
    given = problem(64, (30, 30, 1), dtype, gamma=gamma)
    given.y[::2] = given.x[::2]
    given = given._replace(x=given.x.requires_grad_(), y=given.y.requires_grad_())
    ones, wanted = torch.ones(64, dtype=dtype), (True, True, False)
    value, state = engine.value_and_state(given)
    assert bits(value) == bits(engine.value(given))
    kept = engine.gradient_from_state(given, state, ones, wanted)
    alone = engine.gradient(given, ones, wanted)
    assert kept is not None
    for one, two in zip(kept[:2], alone[:2], strict=True):
        assert bits(one) == bits(two)


def test_what_has_no_matrix_does_not_depend_on_the_batch() -> None:
    for n, m, size in ((8, 8, 4), (64, 64, 8), (500, 40, 100), (4096, 8, 2), (1000, 1000, 512)):
        shapes = [[(b, k, size) for k in (n, m)] for b in (1, 3, 5000)]
        pairs = [[torch.empty(*shape, device="meta") for shape in both] for both in shapes]
        answers = {from_features.without_matrix(*pair, None, "sqeuclidean") for pair in pairs}
        assert len(answers) == 1
    x = torch.empty(1, 5000, 512, device="meta")
    for pairwise in (False, True):
        assert from_features.applies("numba", x, x, pairwise, 20, "sqeuclidean")
        assert not from_features.applies("numba", x, x, pairwise, None, "sqeuclidean")


PROBE = """
import os, torch
import softdtw_kernels._cpu.operators
from softdtw_kernels import soft_dtw

dtype = getattr(torch, os.environ["DTYPE"])


def train(length, bandwidth, gamma):
    x, y = (torch.rand(1, length, 4, dtype=dtype).requires_grad_() for _ in range(2))
    soft_dtw(x, y, gamma=gamma, bandwidth=bandwidth).sum().backward()


# Each in a process of its own.
for length, *settings in ((6000, None, 0.1), (12000, 20, 0.1), (12000, 20, 0.0)):
    if os.fork() == 0:
        torch.set_num_threads(2)
        train(600, *settings)
        before = start_of_peak()
        train(length, *settings)
        print(peak_since() - before, flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.mark.skipif(
    sys.platform != "linux", reason="reads and resets the peak in /proc/self, which only Linux has"
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_matrix_is_ever_in_memory(dtype: str, fresh: Forks) -> None:
    """Less than 15 % of the cost matrix, and with a band next to nothing."""
    matrix = 6000**2 * (4 if dtype == "float32" else 8)
    [done] = fresh.run(PEAK_MEMORY + PROBE, {"DTYPE": dtype})
    whole, band, hard_band = map(int, done.stdout.split())
    assert whole < 0.15 * matrix
    assert band < 20e6 and hard_band < 20e6
