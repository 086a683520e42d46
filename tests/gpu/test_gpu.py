"""What only a GPU can show: the CUDA backend in use, against the CPU.

`make gpu` runs these; without a CUDA device they are skipped. Times are not asserted here but
measured by benchmarks/gpu.py.
"""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from typing import TypeVar

import pytest
import torch

import softdtw_kernels
from benchmarks import accuracy
from softdtw_kernels._cpu import operators as numba_cpu
from softdtw_kernels._cuda.fields import SOURCES
from softdtw_kernels._cuda.launcher import launcher_of
from softdtw_kernels._cuda.operators import OF_GPUS
from softdtw_kernels._problem import FeatureProblem, Problem, SmoothedProblem, Smoothing

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device; run `make gpu` where there is one"
)

SHAPES = [
    (1, 1, 1),
    (3, 5, 7),
    (64, 8, 8),
    (16, 64, 64),
    (4, 300, 200),
    (2, 1024, 900),
    (1, 3000, 40),
]


def case(
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    gamma: float,
    weak: bool,
    ragged: bool,
    band: int | None,
) -> Problem:
    generator = torch.Generator().manual_seed(1)
    cost = torch.randn(shape, dtype=torch.float64, generator=generator).square().to(dtype)
    items, n, m = shape
    lengths: list[torch.Tensor | None] = [None, None]
    if ragged:
        lengths = [torch.randint(1, k + 1, (items,), generator=generator) for k in (n, m)]
    gammas = torch.full((items,), gamma, dtype=torch.float64)
    dummy = torch.full((items,), 0.5, dtype=torch.float64) if weak else None
    return Problem(cost, gammas, dummy, *lengths, band)


AnyProblem = TypeVar("AnyProblem", Problem, Smoothing, SmoothedProblem)


def on_device(problem: AnyProblem) -> AnyProblem:
    return type(problem)(*[v.cuda() if isinstance(v, torch.Tensor) else v for v in problem])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("weak", "ragged", "band"),
    [
        (False, False, None),
        (True, False, None),
        (False, True, None),
        (False, False, 5),
        (True, True, None),
        (False, True, 3),
    ],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_cuda_kernels_give_what_the_cpu_gives(
    shape: tuple[int, int, int], weak: bool, ragged: bool, band: int | None, dtype: torch.dtype
) -> None:
    single = dtype == torch.float32
    for gamma in (1.0, 1e-3, 0.0):
        problem = case(shape, dtype, gamma, weak, ragged, band)
        exact = problem._replace(cost=problem.cost.double())
        ones = torch.ones(shape[0], dtype=dtype)
        value = OF_GPUS.value(on_device(problem)).cpu().double()
        truth = numba_cpu.value(exact)
        assert ((value - truth).abs() <= (1e-6 if single else 1e-12) * (1 + truth.abs())).all()
        got = OF_GPUS.gradient(on_device(problem), ones.cuda(), True)
        expected = numba_cpu.gradient(exact, ones.double(), True)
        assert (got[0].cpu().double() - expected[0]).abs().max() <= (5e-5 if single else 1e-9)
        cells = shape[1] + shape[2]
        for a, b in zip(got[1:], expected[1:], strict=True):
            assert (a.cpu() - b).abs().max() <= (1e-3 if single else 1e-8) * cells


@pytest.mark.parametrize("weak", [False, True])
def test_hessian_product_gives_what_the_cpu_gives(weak: bool) -> None:
    problem = case((3, 40, 150), torch.float64, 0.5, weak, True, None)
    generator = torch.Generator().manual_seed(2)
    tangents = {
        "grad_value": torch.randn(3, dtype=torch.float64, generator=generator),
        "tangent_cost": torch.randn(3, 40, 150, dtype=torch.float64, generator=generator),
        "tangent_gamma": torch.randn(3, dtype=torch.float64, generator=generator),
        "tangent_dummy": torch.randn(3, dtype=torch.float64, generator=generator) if weak else None,
    }
    tangents_there = {name: t if t is None else t.cuda() for name, t in tangents.items()}
    got = OF_GPUS.hessian_product(on_device(problem), **tangents_there)
    expected = numba_cpu.hessian_product(problem, **tangents)
    for a, b in zip(got, expected, strict=True):
        assert (a.cpu() - b).abs().max() <= 1e-9 * (1 + b.abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_smoothing_and_distances_give_what_the_cpu_gives(dtype: torch.dtype) -> None:
    cost, gamma, _, *lengths, _ = case((5, 30, 70), dtype, 0.3, False, True, None)
    x = torch.randn(5, 70, 20, dtype=dtype)
    y = torch.randn(5, 90, 20, dtype=dtype)
    relative = 1e-5 if dtype == torch.float32 else 1e-12
    distances = OF_GPUS.squared_distances(x.cuda(), y.cuda()).cpu()
    torch.testing.assert_close(
        distances, numba_cpu.squared_distances(x, y), rtol=relative, atol=relative
    )
    smoothing = Smoothing(cost, gamma, *lengths, 3.0)
    smoothed = OF_GPUS.smooth(on_device(smoothing)).cpu()
    torch.testing.assert_close(smoothed, numba_cpu.smooth(smoothing), rtol=relative, atol=relative)
    grad = torch.randn(5, 30, 70, dtype=dtype)
    got = OF_GPUS.smooth_vjp(on_device(smoothing), grad.cuda())
    for a, b in zip(got, numba_cpu.smooth_vjp(smoothing, grad), strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=10 * relative, atol=100 * relative)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize(("n", "m"), [(8, 8), (4, 3), (7, 8), (16, 16)])
def test_many_small_pairs_give_what_the_cpu_gives(
    n: int, m: int, ragged: bool, dtype: torch.dtype
) -> None:
    """Enough pairs for a thread each; as a view of one matrix product, and contiguous."""
    sides = (64, 80)
    pairs = sides[0] * sides[1]
    assert pairs >= 16 * torch.cuda.get_device_properties(0).multi_processor_count
    single = dtype == torch.float32
    generator = torch.Generator().manual_seed(3)
    product = torch.rand(sides[0], n, sides[1], m, dtype=torch.float64, generator=generator)
    view = (1 - 2 * product).to(dtype).transpose(1, 2)
    lengths: list[torch.Tensor | None] = [None, None]
    if ragged:
        lengths = [torch.randint(1, k + 1, sides, generator=generator) for k in (n, m)]
    ones = torch.ones(sides, dtype=dtype)
    for gamma in (1.0, 0.1, 1e-3, 0.0):
        gammas = torch.full(sides, gamma, dtype=torch.float64)
        for dummy in (None, gammas * 0 + 0.5):
            for cost in (view, view.contiguous()):
                fields = cost, gammas, dummy, *lengths
                for kind, problem in (
                    ("", Problem(*fields, None)),
                    ("smoothed_", SmoothedProblem(*fields, 1.0)),
                ):
                    exact = problem._replace(cost=cost.double())
                    value = getattr(OF_GPUS, f"{kind}value")(on_device(problem))
                    truth = getattr(numba_cpu, f"{kind}value")(exact)
                    error = (value.cpu().double() - truth).abs() / (1 + truth.abs())
                    assert error.max() <= (2e-6 if single else 1e-12)
                    gradient = getattr(OF_GPUS, f"{kind}gradient")
                    got = gradient(on_device(problem), ones.cuda(), False)[0]
                    gradient = getattr(numba_cpu, f"{kind}gradient")
                    expected = gradient(exact, ones.double(), False)
                    assert got.stride() == cost.stride()
                    error = (got.cpu().double() - expected[0]).abs().max()
                    assert error <= (5e-5 if single else 1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cost", ["sqeuclidean", "negative_dot", "cosine", "shifted_cosine"])
@pytest.mark.parametrize("shape", [(3, 40, 70, 3), (2, 300, 200, 64), (600, 40, 33, 5)])
def test_soft_dtw_from_features_gives_what_the_cpu_gives(
    shape: tuple[int, int, int, int], cost: str, dtype: torch.dtype
) -> None:
    """Few items, whose strips wait for each other, and many; with lengths, and with a band."""
    items, n, m, d = shape
    generator = torch.Generator().manual_seed(5)
    x, y = (
        (torch.randn(items, k, d, dtype=torch.float64, generator=generator) / d**0.5).to(dtype)
        for k in (n, m)
    )
    lengths = [torch.randint(1, k + 1, (items,), generator=generator) for k in (n, m)]
    limits = {"x_lengths": lengths[0], "y_lengths": lengths[1]}
    limits_there = {name: n.cuda() for name, n in limits.items()}
    bar = 5e-5 if dtype == torch.float32 else 1e-9
    band = {"bandwidth": 7}
    for arguments, arguments_there in ((limits, limits_there), (band, band)):
        leaves = [t.cuda().requires_grad_() for t in (x, y)]
        value = softdtw_kernels.soft_dtw(*leaves, gamma=0.5, cost=cost, **arguments_there)
        grads = torch.autograd.grad(value.sum(), leaves)
        exact = [t.double().requires_grad_() for t in (x, y)]
        truth = softdtw_kernels.soft_dtw(*exact, gamma=0.5, cost=cost, **arguments)
        error = (value.cpu().double() - truth).abs() / (1 + truth.abs())
        assert error.max() <= (2e-6 if dtype == torch.float32 else 1e-12)
        for a, b in zip(grads, torch.autograd.grad(truth.sum(), exact), strict=True):
            assert (a.cpu().double() - b).abs().max() <= bar * (1 + b.abs().max())


@pytest.mark.parametrize("gamma", accuracy.GAMMAS)
@pytest.mark.parametrize("case", accuracy.CASES, ids=lambda case: case.name)
def test_float32_keeps_its_bar_at_4096(case: accuracy.Case, gamma: float) -> None:
    truth = accuracy.ours(case, 4096, gamma, torch.float64)
    got = accuracy.ours(case, 4096, gamma, torch.float32, "cuda")
    in_gradient, in_value = accuracy.errors(got, truth)
    assert in_gradient <= 5e-5
    assert in_value <= 1e-6


@pytest.mark.parametrize("gamma", accuracy.GAMMAS)
@pytest.mark.parametrize("case", [c for c in accuracy.CASES if c.from_features], ids=str)
def test_gradients_in_features_that_lie_close_are_exact(case: accuracy.Case, gamma: float) -> None:
    x, y = case.sequences(2048)
    single = [t.cuda().requires_grad_() for t in (x, y)]
    double = [t.double().requires_grad_() for t in (x, y)]
    got = torch.autograd.grad(softdtw_kernels.soft_dtw(*single, gamma=gamma), single)
    truth = torch.autograd.grad(softdtw_kernels.soft_dtw(*double, gamma=gamma), double)
    for a, b in zip(got, truth, strict=True):
        assert (a.cpu().double() - b).abs().max() <= 5e-5 * b.abs().max()


def test_from_features_no_matrix_is_in_memory() -> None:
    x, y = (torch.randn(4, 4096, 8, device="cuda").requires_grad_() for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    softdtw_kernels.soft_dtw(x, y).sum().backward()
    beyond = torch.cuda.max_memory_allocated() - before
    assert beyond < 0.4 * 4 * 4 * 4096**2


def test_families_agree_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = on_device(case((3, 90, 300), torch.float32, 0.1, False, True, None))
    ones = torch.ones(3, device="cuda")
    launcher = launcher_of(torch.cuda.current_device())
    results = []
    for family in ("warp", "block", "long"):
        monkeypatch.setattr(launcher, "family", family)
        grad, _, _ = OF_GPUS.gradient(problem, ones, False)
        results.append((OF_GPUS.value(problem), grad))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_no_call_waits_for_the_device() -> None:
    """Gamma and lengths may be in host memory; only to bring a gradient there takes a wait."""
    x, y = torch.randn(4, 50, 3, device="cuda"), torch.randn(4, 60, 3, device="cuda")
    lengths = torch.tensor([50, 3, 20, 1], device="cuda")
    gamma = torch.tensor(0.5, requires_grad=True)
    cost = torch.rand(4, 500, 600, device="cuda", requires_grad=True)

    def value() -> tuple[torch.Tensor, torch.Tensor]:
        leaf = x.clone().requires_grad_()
        limits = {"x_lengths": lengths, "y_lengths": [60, 2, 7, 1]}
        return leaf, softdtw_kernels.soft_dtw(leaf, y, gamma=gamma, **limits).sum()

    def run() -> None:
        leaf, total = value()
        total.backward(inputs=[leaf])
        softdtw_kernels.soft_dtw_from_cost(cost, x_lengths=lengths).sum().backward()

    run()  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert gamma.grad is None
    value()[1].backward()
    assert gamma.grad.device.type == "cpu" and gamma.grad != 0


@pytest.mark.parametrize("shape", [(8, 70, 300), (1100, 60, 70), (2, 900, 1100)])
def test_a_cuda_graph_replays_forward_and_backward(shape: tuple[int, int, int]) -> None:
    cost = torch.rand(shape, device="cuda", requires_grad=True)

    def run() -> torch.Tensor:
        value = softdtw_kernels.soft_dtw_from_cost(cost, gamma=0.1).sum()
        return torch.autograd.grad(value, cost)[0]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(2):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for seed in (1, 2):
        torch.manual_seed(seed)
        with torch.no_grad():
            cost.copy_(torch.rand_like(cost))
        graph.replay()
        assert torch.equal(captured, run())


@pytest.mark.parametrize("shape", [(1100, 60, 70), (100, 300, 500), (2, 900, 1100)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_backward_of_a_value_has_the_bits_of_the_gradient(
    dtype: torch.dtype, shape: tuple[int, int, int]
) -> None:
    """What the value keeps is only read, and lets an H100 or H200 go another way to the same."""
    problem = on_device(case(shape, dtype, 0.1, False, True, None))
    problem.gamma[0] = 0.0  # by the slow arithmetic
    problem.cost[1, 0, 0] = math.nan
    ones = torch.ones(shape[0], device="cuda", dtype=dtype)
    truth = OF_GPUS.gradient(problem, ones, True)
    value, state = OF_GPUS.value_and_state(problem)
    assert state.numel() > 0
    torch.testing.assert_close(value, OF_GPUS.value(problem), rtol=0, atol=0, equal_nan=True)
    before = state.clone()
    for _ in range(2):
        grads = OF_GPUS.gradient_from_state(problem, state, ones, True)
        for a, b in zip(grads[:2], truth[:2], strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(state, before)


@pytest.mark.parametrize("kind", ["sqeuclidean", "negative_dot"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(600, 40, 70, 5), (6, 300, 500, 5)])
def test_from_features_every_backward_has_the_bits_of_the_gradient(
    shape: tuple[int, int, int, int], dtype: torch.dtype, kind: str
) -> None:
    items, n, m, d = shape
    x, y = (torch.randn(items, k, d, device="cuda", dtype=dtype) for k in (n, m))
    gamma = torch.ones(items, device="cuda", dtype=torch.float64)
    gamma[0] = 0.0
    problem = FeatureProblem(x, y, gamma, None, None, None, kind)
    wanted = (torch.ones(items, device="cuda", dtype=dtype), True, True, True)
    truth = OF_GPUS.fused_gradient(problem, *wanted)
    value, state = OF_GPUS.fused_value_and_state(problem)
    assert state.numel() > 0 and torch.equal(value, OF_GPUS.fused_value(problem))
    before = state.clone()
    for _ in range(2):
        grads = OF_GPUS.fused_gradient_from_state(problem, state, *wanted)
        assert all(torch.equal(a, b) for a, b in zip(grads, truth, strict=True))
        assert torch.equal(state, before)


def test_training_twice_from_one_graph() -> None:
    cost = torch.rand(8, 300, 700, device="cuda", requires_grad=True)
    value = softdtw_kernels.soft_dtw_from_cost(cost, gamma=0.1).sum()
    first, second = (torch.autograd.grad(value, cost, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    (third,) = torch.autograd.grad(value, cost, create_graph=True)  # without what was kept
    assert torch.equal(first, third.detach())
    assert torch.autograd.grad(third.square().sum(), cost)[0].isfinite().all()


@pytest.mark.parametrize("shape", [(1, 4096, 4096), (512, 256, 256)])
def test_what_training_keeps_beside_the_cost(shape: tuple[int, int, int]) -> None:
    """Between forward and backward, and at the peak of it beyond cost and gradient; the slow
    arithmetic may have 32 MiB.
    """
    cost = torch.rand(shape, device="cuda", requires_grad=True)
    size = 4 * cost.numel()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    value = softdtw_kernels.soft_dtw_from_cost(cost, gamma=0.1).sum()
    assert torch.cuda.memory_allocated() - before < 0.26 * size
    value.backward()
    assert torch.cuda.max_memory_allocated() - before - size < 0.27 * size + (32 << 20)
    assert torch.cuda.memory_allocated() - before < size + (1 << 20)
    with torch.no_grad():
        before = torch.cuda.memory_allocated()
        value = softdtw_kernels.soft_dtw_from_cost(cost, gamma=0.1)
        assert torch.cuda.memory_allocated() - before < (1 << 20)


def test_results_repeat_to_the_bit() -> None:
    problem = on_device(case((6, 500, 700), torch.float32, 0.1, False, True, None))
    ones = torch.ones(6, device="cuda")
    first, *others = (OF_GPUS.gradient(problem, ones, True) for _ in range(5))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_work_is_done_on_the_current_stream() -> None:
    stream = torch.cuda.Stream()
    cost = torch.rand(4, 200, 200, device="cuda")
    expected = softdtw_kernels.soft_dtw_from_cost(cost)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late = cost * 2  # only later kernels of this stream see it
        doubled = softdtw_kernels.soft_dtw_from_cost(late, gamma=2.0)
    torch.cuda.synchronize()
    torch.testing.assert_close(doubled, 2 * expected)


def test_torch_compile_vmap_and_autocast() -> None:
    cost = torch.rand(3, 20, 30, device="cuda", requires_grad=True)
    expected = softdtw_kernels.soft_dtw_from_cost(cost, gamma=0.1)

    def one(c: torch.Tensor) -> torch.Tensor:
        return softdtw_kernels.soft_dtw_from_cost(c, gamma=0.1)

    compiled = torch.compile(one, fullgraph=True)
    torch.testing.assert_close(compiled(cost), expected)
    torch.testing.assert_close(torch.func.vmap(one)(cost), expected)
    with torch.autocast("cuda", torch.float16):
        x, y = torch.randn(2, 9, 4, device="cuda"), torch.randn(2, 8, 4, device="cuda")
        assert softdtw_kernels.soft_dtw(x, y).dtype == torch.float32


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_each_device_does_its_own_work() -> None:
    cost = torch.rand(3, 100, 200)
    values = [softdtw_kernels.soft_dtw_from_cost(cost.to(f"cuda:{k}")).cpu() for k in (0, 1)]
    assert torch.equal(*values)


def memory_for(gigabytes: float) -> bool:
    return torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > gigabytes * 2**30


@pytest.mark.skipif(not memory_for(24), reason="needs 24 GiB of free GPU memory")
def test_a_batch_of_more_than_two_to_the_31_cells() -> None:
    """Offsets are 64 bits wide: the last items lie beyond 2^31 cells."""
    items, side = 33_000, 256
    cost = torch.rand(items, side, side, device="cuda")
    assert cost.numel() > 2**31
    gamma = torch.ones((), dtype=torch.float64, device="cuda").expand(items)
    problem = Problem(cost, gamma, None, None, None, None)
    value = OF_GPUS.value(problem)
    last_items = problem._replace(cost=cost[-5:].clone(), gamma=gamma[-5:])
    last = OF_GPUS.value(last_items)
    assert torch.equal(value[-5:], last)
    grad, _, _ = OF_GPUS.gradient(problem, torch.ones_like(value), False)
    few = OF_GPUS.gradient(last_items, torch.ones_like(last), False)
    assert torch.equal(grad[-5:], few[0])
    assert (grad.flatten(1).sum(1) >= side - 1e-2).all()


@pytest.mark.skipif(not memory_for(20), reason="needs 20 GiB of free GPU memory")
def test_a_value_of_65536_by_65536() -> None:
    cost = torch.ones(65536, 65536, device="cuda")
    gamma = torch.zeros((), dtype=torch.float64, device="cuda") + 1e-3
    value = OF_GPUS.value(Problem(cost, gamma, None, None, None, None))
    assert value.item() == pytest.approx(65536, rel=1e-6)


@pytest.mark.skipif(not memory_for(6), reason="needs 6 GiB of free GPU memory")
def test_memory_of_a_gradient_of_16384_by_16384() -> None:
    cost = torch.rand(16384, 16384, device="cuda")
    gamma = torch.ones((), dtype=torch.float64, device="cuda")
    one = torch.ones((), device="cuda")
    problem = Problem(cost, gamma, None, None, None, None)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    grad, _, _ = OF_GPUS.gradient(problem, one, False)
    bytes_of_cost = 4 * cost.numel()
    beyond = torch.cuda.max_memory_allocated() - before - bytes_of_cost
    assert beyond < 0.1 * bytes_of_cost
    assert grad.sum().item() >= 16384 - 1


def test_out_of_range_values_are_nan_for_their_item() -> None:
    cost = torch.rand(4, 10, 12, device="cuda")
    lengths = torch.tensor([10, 11, 3, 0], device="cuda")
    value = softdtw_kernels.soft_dtw_from_cost(cost, x_lengths=lengths)
    assert value.isnan().tolist() == [False, True, False, True]
    assert math.isfinite(value[0].item())


TOOLS = ("memcheck", "racecheck", "synccheck")


@pytest.mark.parametrize("tool", TOOLS)
def test_compute_sanitizer_finds_nothing(tool: str) -> None:
    program = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin"
    )
    if program is None:
        pytest.skip("compute-sanitizer, of the CUDA toolkit, is not on the path")
    # As a module, so that the package is found where it is not installed.
    python = [sys.executable, "-m", "tests.gpu.sanitized"]
    if tool == "racecheck":  # see there
        python += ["warp", "long"]
    done = subprocess.run(
        [program, "--tool", tool, "--error-exitcode", "99", *python],
        capture_output=True,
        text=True,
        cwd=SOURCES.parents[2],
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
