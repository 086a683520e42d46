"""Monotonic alignments: every alignment enumerated, derivatives, lengths, what is forbidden, and
the systems that they are special cases of.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from decimal import Context, Decimal, localcontext

import numpy as np
import pytest
import torch
from helpers import assert_close, bits, derivative, value_and_gradient
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jvp, vmap

from softdtw_kernels import ForwardSumLoss, forward_sum, monotonic_alignment
from softdtw_kernels import _monotonic_rows as rows
from softdtw_kernels._operators import ops

INF = math.inf


def draw(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


def with_walls(x: Tensor, count: int, seed: int) -> Tensor:
    places = torch.randperm(x.numel(), generator=torch.Generator().manual_seed(seed))[:count]
    x.view(-1)[places] = -INF
    return x


def all_derivatives(x: Tensor, direction: Tensor, **arguments: object) -> tuple[Tensor, ...]:
    """Values, their gradients and the product of the Hessians with a direction."""
    leaf = x.detach().clone().requires_grad_()
    value = forward_sum(leaf, **arguments)
    (gradient,) = derivative(value.sum(), leaf, again=True)
    (product,) = derivative((gradient * direction).sum(), leaf)
    return value.detach(), gradient.detach(), product


def alignments(n: int, m: int) -> Iterator[list[int]]:
    """The token of every frame, of all alignments."""
    for steps in itertools.combinations(range(1, n), m - 1):
        yield [sum(t >= k for k in steps) for t in range(n)]


@pytest.mark.parametrize("shape", [(1, 1), (4, 1), (3, 3), (6, 3), (7, 4), (2, 3)])
@pytest.mark.parametrize("walls", [0, 3])
def test_values_and_alignments_are_those_of_all_alignments_enumerated(
    shape: tuple[int, int], walls: int, backend: str
) -> None:
    for seed in range(3):
        x = with_walls(draw(*shape, seed=seed), walls, seed)
        found = [(float(x[range(len(a)), a].sum()), a) for a in alignments(*shape)]
        best = max([-INF, *(score for score, _ in found)])
        value, gradient, _ = all_derivatives(x, torch.zeros_like(x), backend=backend)
        path = monotonic_alignment(x.requires_grad_(), backend=backend)
        assert not path.requires_grad
        if best == -INF:
            assert value == INF
            assert not gradient.any() and not path.any()
            continue
        truth = -np.logaddexp.reduce([score for score, _ in found])
        assert_close(value, truth, 1e-13, "value", rtol=1e-13)
        expected = torch.zeros_like(x)
        for score, a in found:
            expected[range(len(a)), a] += math.exp(score + truth)
        assert_close(-gradient, expected.detach(), 1e-13, "expected alignment")
        (argmax,) = [a for score, a in found if score == best]
        assert path.argmax(-1).tolist() == argmax and path.sum() == len(argmax)


@pytest.mark.parametrize("shape", [(1, 1), (4, 2), (5, 3)])
def test_first_and_second_derivatives(shape: tuple[int, int], backend: str) -> None:
    x = draw(2, *shape)
    if shape[1] > 1:
        x[0, 2, 0] = -INF

    def call(y: Tensor) -> Tensor:
        return forward_sum(torch.where(x == -INF, x, y), backend=backend)

    y = x.nan_to_num(neginf=0.0).requires_grad_()
    assert torch.autograd.gradcheck(call, y)
    assert torch.autograd.gradgradcheck(call, y)


@pytest.mark.parametrize("n, m", [(8, 8), (9, 8), (23, 7), (40, 17), (30, 25)])
@pytest.mark.parametrize("scale", [0.1, 300.0])
def test_kernels_and_reference_agree(n: int, m: int, scale: float) -> None:
    x = with_walls(draw(3, n, m, scale=scale), n // 3, 0)
    direction = draw(3, n, m, seed=1)
    truth = all_derivatives(x, direction, backend="reference")
    for got, right, name in zip(
        all_derivatives(x, direction), truth, ("value", "gradient", "product"), strict=True
    ):
        assert_close(got, right, 1e-11, name, rtol=1e-12)
    assert torch.equal(monotonic_alignment(x), monotonic_alignment(x, backend="reference"))


def test_float32_of_long_items() -> None:
    """The sums are in float64 whatever the dtype: what is lost is lost in the last rounding."""
    x = torch.log_softmax(draw(1, 4096, 90, scale=3.0), -1).float()
    x = torch.cat([x, draw(1, 4096, 90).cumsum(-2).float()])  # and walks far from 0
    value, gradient = value_and_gradient(forward_sum, x)
    truth = value_and_gradient(forward_sum, x.double())
    assert_close(value, truth[0], 0.0, "value", rtol=1e-7)
    assert_close(gradient, truth[1], 1e-7, "gradient")
    assert_close(-truth[1].sum(-1), 1.0, 1e-11, "a frame emits one token")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-3, 1e-8, 1e-15, 3.0])
def test_values_next_to_0_keep_their_digits(size: float, dtype: torch.dtype) -> None:
    """Of probabilities next to 1, and of some that cancel; what no alignment visits is not read."""
    relative, (rows, columns) = (1e-6 if dtype == torch.float32 else 1e-12), (5, 3)
    lengths, expected = [(5, 3), (3, 3), (4, 1), (1, 1)], []
    x = draw(len(lengths), rows, columns, scale=size)
    x[0, 2:4, 1], x[0, 0, 0] = -40.0, -size
    for item, (n, m) in enumerate(lengths):
        listed = list(alignments(n, m))
        for t, j in itertools.product(range(rows), range(columns)):
            if not any(t < n and a[t] == j for a in listed):
                x[item, t, j] = math.nan
        for _ in range(3 if size > 1 else 0):  # the value becomes next to nothing
            x[item, 0, 0] += exact_value(x[item].to(dtype), listed) - 1e-4
        expected.append(exact_value(x[item].to(dtype), listed))
    n, m = (list(sizes) for sizes in zip(*lengths, strict=True))
    for leaf in (x.to(dtype), x.to(dtype).requires_grad_()):
        found = forward_sum(leaf, x_lengths=n, y_lengths=m)
        for got, truth in zip(found.tolist(), expected, strict=True):
            assert abs(got - truth) <= relative * abs(truth)


def exact_value(x: Tensor, listed: list[list[int]]) -> float:
    """Minus the log-probability of all alignments."""
    with localcontext(Context(prec=60)):
        scores = [sum(Decimal(x[t, j].item()) for t, j in enumerate(a)) for a in listed]
        return -float(Decimal(sum(Decimal(score).exp() for score in scores)).ln())


def test_costs_of_any_size_lose_nothing() -> None:
    """Far from 0 the exponents do not fit the vectors, and masks are finite."""
    x = draw(4, 12, 5)
    mask = draw(4, 12, 5, seed=1) > 1.5
    truth = all_derivatives(x.masked_fill(mask, -INF), torch.ones_like(x))
    for low in (-1e9, -1e30, torch.finfo(torch.float64).min / 100):
        got = all_derivatives(x.masked_fill(mask, low), torch.ones_like(x))
        possible = truth[0] < INF
        for a, b in zip(got, truth, strict=True):
            assert_close(a[possible], b[possible], 1e-12, f"mask of {low}", rtol=1e-12)
    shifted = all_derivatives(x + 2.0**45, torch.ones_like(x))
    there = all_derivatives((x + 2.0**45) - 2.0**45, torch.ones_like(x))
    assert_close(shifted[0], there[0] - 12 * 2.0**45, 0.25, "value")
    assert_close(shifted[1], there[1], 1e-12, "gradient")


def test_what_a_frame_adds_to_all_tokens_moves_the_value_alone(backend: str) -> None:
    x, added = draw(2, 9, 4), draw(2, 9, 1, seed=1, scale=20.0)
    direction = draw(2, 9, 4, seed=2)
    before = all_derivatives(x, direction, backend=backend)
    after = all_derivatives(x + added, direction, backend=backend)
    assert_close(after[0], before[0] - added.sum((-2, -1)), 1e-12, "value")
    for k in (1, 2):
        assert_close(after[k], before[k], 1e-12, "derivative")
    path = monotonic_alignment(x, backend=backend)
    assert torch.equal(monotonic_alignment(x + added, backend=backend), path)


def test_time_may_run_backward(backend: str) -> None:
    x, direction = draw(2, 9, 4), draw(2, 9, 4, seed=1)
    truth = all_derivatives(x, direction, backend=backend)
    flipped = all_derivatives(x.flip(-2, -1), direction.flip(-2, -1), backend=backend)
    assert_close(flipped[0], truth[0], 1e-12, "value")
    for k in (1, 2):
        assert_close(flipped[k].flip(-2, -1), truth[k], 1e-12, "derivative")


N, M = [9, 5, 3, 2, 1], [4, 4, 3, 3, 1]


def test_lengths_are_a_loop_over_the_items(backend: str) -> None:
    x, direction = draw(5, 9, 4), draw(5, 9, 4, seed=1)
    for k in range(5):
        for z in (x, direction):
            z[k, N[k] :] = math.nan
            z[k, :, M[k] :] = math.nan
    x[0, 0, 1:] = x[0, -1, :3] = math.nan  # no alignment comes there
    lengths = {"x_lengths": N, "y_lengths": torch.tensor(M), "backend": backend}
    found = all_derivatives(x, direction, **lengths)
    best = monotonic_alignment(x, **lengths)
    assert found[0].isinf().tolist() == [False, False, False, True, False]
    for k in range(5):
        inside = slice(N[k]), slice(M[k])
        for z in (*found[1:], best):
            assert z[k].isfinite().all()
            assert not z[k, N[k] :].any() and not z[k, :, M[k] :].any()
        own, along = x[k][inside], direction[k][inside].nan_to_num()
        truth = all_derivatives(own, along, backend=backend)
        assert torch.equal(found[0][k], truth[0])
        for z, right in zip(found[1:], truth[1:], strict=True):
            assert_close(z[k][inside], right, 1e-14, "derivative")
        assert torch.equal(best[k][inside], monotonic_alignment(own, backend=backend))


@pytest.mark.parametrize("bad", [math.nan, INF])
def test_a_bad_item_keeps_to_itself(bad: float, backend: str) -> None:
    x, direction = draw(3, 6, 3), draw(3, 6, 3, seed=1)
    truth = all_derivatives(x, direction, backend=backend)
    x[1, 3, 1] = bad
    found = all_derivatives(x, direction, backend=backend)
    visited = truth[1][1] != 0
    for z, right in zip(found, truth, strict=True):
        assert torch.equal(z[[0, 2]], right[[0, 2]])
    assert found[0][1].isnan()
    assert found[1][1][visited].isnan().all() and found[2][1].isnan().any()
    assert not found[1][1][~visited].any()
    if math.isnan(bad):
        assert not monotonic_alignment(x, backend=backend)[1].any()


def test_bits_depend_neither_on_the_place_in_the_batch_nor_on_strides_nor_on_threads() -> None:
    x = draw(6, 300, 70).float()
    truth = all_derivatives(x, x)
    path = monotonic_alignment(x)
    alone = all_derivatives(x[3], x[3])
    strided = all_derivatives(x.mT.contiguous().mT, x)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        threaded = all_derivatives(x, x)
    finally:
        torch.set_num_threads(before)
    for k in range(3):
        assert bits(truth[k][3]) == bits(alone[k])
        assert bits(truth[k]) == bits(strided[k]) == bits(threaded[k])
    assert bits(monotonic_alignment(x.mT.contiguous().mT)) == bits(path)
    twice = x[:2, None].expand(2, 3, 300, 70)
    assert bits(monotonic_alignment(twice)) == bits(path[:2, None].expand(2, 3, 300, 70))


def test_the_operators_of_other_devices() -> None:
    """In plain torch, behind the same checks."""
    x, tangent = draw(2, 1, 2, 4, 2), draw(2, 1, 2, 4, 2, seed=1)
    n = torch.tensor([4, 3]).expand(2, 1, 2)
    for name, rest in (("sum", (True,)), ("sum", (False,)), ("product", (tangent,)), ("path", ())):
        name = f"monotonic_{name}"
        got = ops._on_costs(name, lambda: rows)(x, n, None, *rest)
        truth = getattr(torch.ops.softdtw_kernels, name)(x, n, None, *rest)
        torch.testing.assert_close(got, truth, rtol=1e-12, atol=1e-12)


def test_torch_transforms() -> None:
    x, direction = draw(5, 3), draw(5, 3, seed=1)
    value, gradient, product = all_derivatives(x, direction)
    assert_close(grad(forward_sum)(x), gradient, 1e-14, "grad")
    got, tangent = jvp(forward_sum, (x,), (direction,))
    assert_close(got, value, 1e-14, "value of jvp")
    assert_close(tangent, (gradient * direction).sum(), 1e-13, "jvp")
    for second in (hessian(forward_sum), jacfwd(grad(forward_sum)), jacfwd(jacfwd(forward_sum))):
        assert_close((second(x) * direction).sum((-2, -1)), product, 1e-12, "Hessian product")
    many = draw(4, 5, 3)
    assert_close(vmap(forward_sum)(many), forward_sum(many), 1e-14, "vmap")
    one_by_one = torch.stack([grad(forward_sum)(z) for z in many])
    assert_close(vmap(grad(forward_sum))(many), one_by_one, 1e-14, "vmap of grad")
    paths = vmap(monotonic_alignment, in_dims=1)(many.transpose(0, 1).contiguous())
    assert torch.equal(paths, monotonic_alignment(many))


def test_compiled_and_exported_programs() -> None:
    x, n = draw(2, 5, 3), torch.tensor([5, 4])

    def total(z: Tensor, n: Tensor) -> Tensor:
        path = monotonic_alignment(z, x_lengths=n)
        return forward_sum(z, x_lengths=n).sum() + (path * z).sum()

    torch._dynamo.reset()
    compiled = torch.compile(total, backend="aot_eager", fullgraph=True)
    leaves = [x.clone().requires_grad_() for _ in "12"]
    for leaf, call in zip(leaves, (total, compiled), strict=True):
        call(leaf, n).backward()
    assert torch.equal(leaves[0].grad, leaves[1].grad)

    class Module(torch.nn.Module):
        def forward(self, z: Tensor, n: Tensor) -> Tensor:
            return total(z, n)

    for example in (x, x.clone().requires_grad_()):
        program = torch.export.export(Module(), (example, n)).module()
        leaf = x.clone().requires_grad_()
        program(leaf, n).backward()
        assert_close(leaf.grad, leaves[0].grad, 1e-14, "gradient of an exported program")


def test_a_third_derivative_is_refused_but_by_the_reference() -> None:
    x = draw(4, 2).requires_grad_()
    for backend in ("numba", "reference"):
        (first,) = torch.autograd.grad(forward_sum(x, backend=backend), x, create_graph=True)
        (second,) = torch.autograd.grad(first[1, 0], x, create_graph=True)
        if backend == "reference":
            assert torch.autograd.grad(second[1, 0], x)[0].any()
        else:
            with pytest.raises(RuntimeError, match="a third one was asked for"):
                torch.autograd.grad(second[1, 0], x)


def test_forward_sum_is_ctc_with_an_impossible_blank() -> None:
    x = draw(3, 9, 4)
    n, m = torch.tensor([9, 6, 4]), torch.tensor([4, 3, 4])
    with_blank = torch.nn.functional.pad(x, (1, 0), value=-1e5).transpose(0, 1)
    targets = torch.arange(1, 5).expand(3, 4)
    truth = torch.nn.functional.ctc_loss(with_blank, targets, n, m, reduction="none")
    assert_close(forward_sum(x, x_lengths=n, y_lengths=m), truth, 1e-9, "value")


def maximum_path(value: np.ndarray) -> np.ndarray:
    """Glow-TTS, Algorithm 1, of tokens x frames; of equal steps the diagonal one."""
    tokens, frames = value.shape
    q = np.full((tokens, frames), -np.inf)
    for j in range(frames):
        for i in range(min(tokens, j + 1)):
            stay = q[i, j - 1] if j else -np.inf
            before = q[i - 1, j - 1] if i and j else (0.0 if i == j == 0 else -np.inf)
            q[i, j] = value[i, j] + max(stay, before)
    path, i = np.zeros_like(value), tokens - 1
    for j in range(frames - 1, -1, -1):
        path[i, j] = 1
        if i and j and q[i - 1, j - 1] >= q[i, j - 1]:
            i -= 1
    return path


@pytest.mark.parametrize("kind", ["normal", "ties", "constant"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_monotonic_alignment_is_the_search_of_glow_tts(
    kind: str, dtype: torch.dtype, backend: str
) -> None:
    x = {"normal": draw(4, 19, 9), "ties": draw(4, 19, 9).round(), "constant": torch.ones(4, 19, 9)}
    scores = x[kind].to(dtype)
    path = monotonic_alignment(scores, backend=backend)
    assert path.dtype == dtype
    for got, item in zip(path, scores, strict=True):
        assert np.array_equal(got.double().mT.numpy(), maximum_path(item.double().mT.numpy()))


def test_the_loss_module(backend: str) -> None:
    x, n, m = draw(3, 6, 4), [6, 5, 6], [4, 4, 2]
    values = forward_sum(x, x_lengths=n, y_lengths=m)
    assert_close(ForwardSumLoss(backend=backend)(x, n, m), values.mean(), 1e-13, "mean")
    assert_close(ForwardSumLoss("sum")(x, n, m), values.sum(), 1e-13, "sum")
    assert_close(ForwardSumLoss("none")(x, n, m), values, 1e-13, "none")
    assert repr(ForwardSumLoss()) == "ForwardSumLoss(reduction='mean')"
    assert forward_sum(x.half()).dtype == torch.float32
    assert forward_sum(x[:0]).shape == (0,) and monotonic_alignment(x[:0]).shape == (0, 6, 4)
    with pytest.raises(ValueError, match="target_lengths must lie in 1..4"):
        ForwardSumLoss(backend=backend)(x, n, [4, 4, 5])


@pytest.mark.parametrize("function", [forward_sum, monotonic_alignment])
def test_bad_arguments(function: object, backend: str) -> None:
    x = draw(3, 6, 4)
    for error, message, call in (
        (TypeError, r"\(\*, N, M\), got list", lambda: function([[0.0]])),
        (TypeError, "must be float32, float64", lambda: function(x.long())),
        (ValueError, "must have shape", lambda: function(x[0, 0])),
        (ValueError, "x_lengths must be integers of shape", lambda: function(x, x_lengths=[1, 2])),
        (ValueError, "x_lengths must lie in 1..6, .*got 7",
         lambda: function(x, x_lengths=[7, 1, 1], backend=backend)),
        (ValueError, "y_lengths must lie in 1..4, .*got 0",
         lambda: function(x, y_lengths=[4, 0, 1], backend=backend)),
        (ValueError, "backend must be", lambda: function(x, backend="gpu")),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            call()
    with pytest.raises(ValueError, match="reduction must be one of"):
        ForwardSumLoss("average")
