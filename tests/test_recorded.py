"""Programs of torch.export and torch.jit.trace, and direct calls of the operators: values and
gradients are those of the public functions, saved and loaded too.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_close
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

import softdtw_kernels as sk
from softdtw_kernels._operators import ops
from softdtw_kernels.costs import NAMED


def data(batch: int, n: int, m: int) -> tuple[Tensor, Tensor]:
    """Sequences with a zero frame and with a frame in common."""
    random = torch.Generator().manual_seed(0)
    x, y = (torch.randn(batch, k, 3, generator=random) for k in (n, m))
    x[0, 1], y[0, 0] = 0, x[0, 0]
    return x, y


SMALL, LARGE = data(3, 5, 6), data(4, 7, 9)
LENGTHS, LARGE_LENGTHS = (
    (torch.tensor([5, 2, 1]), torch.tensor([6, 1, 4])),
    (torch.tensor([7, 2, 1, 3]), torch.tensor([6, 1, 9, 3])),
)


class Program(nn.Module):
    """Of a public function; gamma is learned."""

    def __init__(self, function: Callable[..., Any], **settings: object) -> None:
        super().__init__()
        self.function, self.settings = function, settings
        self.gamma = nn.Parameter(torch.tensor(0.3))

    def forward(
        self, x: Tensor, y: Tensor, n: Tensor | None = None, m: Tensor | None = None
    ) -> Any:
        if self.function is sk.cost_matrix:
            return self.function(x, y, **self.settings) * self.gamma
        if self.function.__name__.endswith("from_cost"):
            x = torch.einsum("bnd,bmd->bnm", x, y)
            arguments: tuple[Tensor, ...] = (x,)
        else:
            arguments = x, y
        result = self.function(
            *arguments, gamma=self.gamma, x_lengths=n, y_lengths=m, **self.settings
        )
        return (result.value, result.expected) if isinstance(result, sk.Alignment) else result


class Entropy(nn.Module):
    """Where nothing asks for a derivative while the program is recorded."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return sk.soft_dtw_alignment(x, y, gamma=0.5).entropy


EACH_COST = {
    f"{function.__name__} {cost}": Program(function, cost=cost)
    for function in (sk.soft_dtw, sk.cost_matrix)
    for cost in NAMED
}
LOSSES = {
    "divergence": sk.SoftDTWLoss(divergence=True, bandwidth=3),
    "S2DTWLoss": sk.S2DTWLoss(
        gamma=nn.Parameter(torch.tensor(0.5)), dummy_cost=nn.Parameter(torch.tensor(0.4))
    ),
    "no smoothing": sk.S2DTWLoss(smoothing=False, reduction="none"),
    "DILATELoss": sk.DILATELoss(gamma=0.3),
}
PROGRAMS: dict[str, nn.Module] = {
    **EACH_COST,
    **LOSSES,
    "s2dtw": Program(sk.s2dtw),
    "pairwise": Program(sk.s2dtw, pairwise=True),
    "soft_dtw_divergence": Program(sk.soft_dtw_divergence),
    "soft_dtw_from_cost": Program(sk.soft_dtw_from_cost),
    "s2dtw_from_cost": Program(sk.s2dtw_from_cost),
    "soft_dtw_alignment": Program(sk.soft_dtw_alignment),
    "entropy": Entropy(),
    "s2dtw_alignment": Program(sk.s2dtw_alignment),
    "reference": Program(sk.soft_dtw, backend="reference"),
}
# Of every kind one, for what takes longer.
FEW = ["soft_dtw euclidean", "S2DTWLoss", "divergence", "soft_dtw_alignment"]


def differentiated(program: Any, *arguments: Tensor) -> list[Tensor]:
    """The results, and the gradients of a form of them in all inputs and parameters."""
    leaves = [t.clone().requires_grad_() if t.is_floating_point() else t for t in arguments]
    results = program(*leaves)
    results = results if isinstance(results, tuple) else (results,)
    total = sum((v * torch.arange(1, v.numel() + 1).view(v.shape).cos()).sum() for v in results)
    of = [t for t in leaves if t.requires_grad] + list(program.parameters())
    return [v.detach() for v in results] + list(torch.autograd.grad(total, of))


def check(recorded: Any, program: nn.Module, *arguments: Tensor) -> None:
    got, truth = differentiated(recorded, *arguments), differentiated(program, *arguments)
    assert len(got) == len(truth)
    for a, b in zip(got, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6)


def dynamic(*arguments: Tensor, pairwise: bool = False) -> tuple[dict[int, Any], ...]:
    dim = torch.export.Dim
    a, n, m = (dim(name, min=2, max=512) for name in "anm")
    b = dim("b", min=2, max=512) if pairwise else a
    return ({0: a, 1: n}, {0: b, 1: m}, *({0: a} for _ in arguments[2:]))


def exported(program: nn.Module, *arguments: Tensor, **settings: Any) -> Any:
    if "dynamic_shapes" in settings and isinstance(program, Program):
        shapes = settings["dynamic_shapes"]
        names = ("x", "y", "n", "m")
        settings["dynamic_shapes"] = dict(zip(names, shapes, strict=False))
    return torch.export.export(program, arguments, **settings)


def saved_and_loaded(module: Any, what: Any) -> Any:
    file = io.BytesIO()
    what.save(module, file)
    file.seek(0)
    return what.load(file)


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_exported_program_differentiates(name: str) -> None:
    program = PROGRAMS[name]
    check(exported(program, *SMALL).module(), program, *SMALL)


@pytest.mark.parametrize("name", [*FEW, "pairwise", "DILATELoss", "entropy"])
def test_with_dynamic_shapes_and_saved(name: str) -> None:
    program = PROGRAMS[name]
    shapes = dynamic(*SMALL, pairwise=name == "pairwise")
    loaded = saved_and_loaded(exported(program, *SMALL, dynamic_shapes=shapes), torch.export)
    for arguments in (SMALL, LARGE):
        check(loaded.module(), program, *arguments)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", ["soft_dtw cosine", "S2DTWLoss", "divergence"])
def test_lengths_and_strict_export(name: str, strict: bool) -> None:
    program, arguments = PROGRAMS[name], (*SMALL, *LENGTHS)
    shapes = dynamic(*arguments)
    program_of = exported(program, *arguments, dynamic_shapes=shapes, strict=strict)
    for given in (arguments, (*LARGE, *LARGE_LENGTHS)):
        check(program_of.module(), program, *given)


@pytest.mark.parametrize("name", FEW)
def test_decomposed_and_compiled(name: str) -> None:
    torch._dynamo.reset()
    program = PROGRAMS[name]
    of = exported(program, *SMALL)
    check(torch.compile(of.module(), backend="aot_eager", fullgraph=True), program, *SMALL)
    check(of.run_decompositions().module(), program, *SMALL)


def test_second_derivatives_and_transforms_of_an_exported_program() -> None:
    x, y = (t.double() for t in SMALL)
    program = sk.S2DTWLoss(reduction="sum")
    of = exported(program, x, y).module()
    truth = torch.func.grad(program)(x, y)
    torch.testing.assert_close(torch.func.grad(of)(x, y), truth)
    x.requires_grad_()
    products = []
    for f in (of, program):
        (g,) = torch.autograd.grad(f(x, y), x, create_graph=True)
        products.append(torch.autograd.grad((g * y[:, :5]).sum(), x)[0])
    torch.testing.assert_close(*products)


def test_a_trace_in_training_and_one_without_gradient() -> None:
    """Arguments that require a gradient are recorded as any others."""
    program = PROGRAMS["soft_dtw euclidean"]
    leaves = [t.clone().requires_grad_() for t in SMALL]
    check(torch.jit.trace(program, tuple(leaves)), program, *SMALL)
    with torch.no_grad():
        traced = torch.jit.trace(program, SMALL)
    check(traced, program, *SMALL)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_traced_program_differentiates(name: str) -> None:
    """Of other shapes too, but for the reference, whose steps are unrolled: that raises."""
    program = PROGRAMS[name]
    torch.set_warn_always(True)  # or only the first program that is recorded may warn
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", torch.jit.TracerWarning)
            traced = torch.jit.trace(program, SMALL)
    finally:
        torch.set_warn_always(False)
    loaded = saved_and_loaded(traced, torch.jit)
    for module in (traced, loaded):
        check(module, program, *SMALL)
    if name == "reference":
        with pytest.raises(RuntimeError, match="TorchScript"):
            loaded(*LARGE)
    else:
        check(loaded, program, *LARGE)


@pytest.mark.parametrize("name", ["soft_dtw cosine", "S2DTWLoss", "divergence"])
def test_a_trace_with_lengths(name: str) -> None:
    program = PROGRAMS[name]
    traced = torch.jit.trace(program, (*SMALL, *LENGTHS))
    check(traced, program, *LARGE, *LARGE_LENGTHS)


def test_a_traced_program_refuses_what_no_longer_fits() -> None:
    traced = torch.jit.trace(sk.SoftDTWLoss(), SMALL)
    with pytest.raises(Exception, match="expanded size|must match|equal leading"):
        traced(SMALL[0], LARGE[1])


# ---- direct calls


def direct(*shape: int) -> dict[str, tuple[Any, ...]]:
    """Arguments of every operator, float64 and small, with gradients where they can be."""
    lead, random = shape[:-2], torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        return torch.rand(shape, dtype=torch.float64, generator=random).requires_grad_()

    cost, tangent, gamma, weight, dummy = leaf(*shape), leaf(*shape), *(leaf(*lead) for _ in "123")
    n = torch.randint(1, shape[-2] + 1, lead, generator=random)
    x, y = leaf(*lead, 3, 2), leaf(*lead, 4, 2)
    smoothing = cost, gamma, n, None, 1.5
    problem = cost, gamma, None, n, None, 2
    weak = cost, gamma, dummy, n, None, None
    smoothed = cost, gamma, dummy, n, None, 1.5
    fused = x, y, gamma, None, None, 3, "sqeuclidean"
    state = torch.empty(0, dtype=torch.uint8)
    frames = leaf(*shape).mT, None, n.clamp(max=2)
    pattern = cost, gamma, leaf(*lead), leaf(*lead), n, None, None, "x", "", "xy"
    return {
        "value": problem,
        "gradient": (*weak, weight, True),
        "value_and_state": problem,
        "gradient_from_state": (*problem, state, weight, True),
        "hessian_product": (*problem, weight, tangent, leaf(*lead), None),
        "smooth": smoothing,
        "smooth_vjp": (*smoothing, tangent),
        "smoothed_value": smoothed,
        "smoothed_gradient": (*smoothed, weight, True),
        "squared_distances": (x, y),
        "squared_distances_vjp": (x, y, leaf(*lead, 3, 4), True, True),
        "fused_value": fused,
        "fused_gradient": (*fused, weight, True, True, True),
        "fused_value_and_state": fused,
        "fused_gradient_from_state": (*fused, state, weight, True, True, True),
        "monotonic_sum": (*frames, True),
        "monotonic_product": (frames[0].detach(), *frames[1:], tangent.mT),
        "monotonic_path": (frames[0].detach(), *frames[1:]),
        "pattern_value": pattern,
        "pattern_gradient": (*pattern, weight, True),
        "pattern_hessian_product": (*pattern, weight, tangent, *(leaf(*lead) for _ in "123")),
    }


def call(name: str) -> Callable[..., Any]:
    return getattr(torch.ops.softdtw_kernels, name).default


REFUSED = {name for name in ops.OPERATORS if "state" in name}
TWICE = (
    "value", "smoothed_value", "squared_distances", "squared_distances_vjp", "fused_value",
    "monotonic_product", "pattern_value",
)  # fmt: skip


def test_every_operator_is_called_here() -> None:
    assert direct(2, 3, 4).keys() == ops.OPERATORS.keys()


@pytest.mark.parametrize(
    "name",
    sorted(
        name
        for name in ops.OPERATORS.keys() - REFUSED - {"monotonic_path"}
        if not name.endswith("hessian_product")
    ),
)
def test_a_direct_call_has_its_derivative(name: str) -> None:
    arguments = direct(2, 3, 4)[name]
    assert torch.autograd.gradcheck(call(name), arguments)
    if name in TWICE:
        assert torch.autograd.gradgradcheck(call(name), arguments)
    with torch.no_grad():
        results = call(name)(*arguments)
    results = (results,) if isinstance(results, Tensor) else results
    assert not any(result.requires_grad for result in results)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_or_an_error_comes_before_a_number(name: str) -> None:
    with pytest.raises(NotImplementedError, match="has no derivative"):
        call(name)(*direct(2, 3, 4)[name])


def test_a_third_derivative_is_refused() -> None:
    along, *_ = call("hessian_product")(*direct(2, 3, 4)["hessian_product"])
    with pytest.raises(RuntimeError, match="a third one was asked for"):
        along.sum().backward()
    cost = direct(2, 3, 4)["gradient"][0]
    grads = call("gradient")(*direct(2, 3, 4)["gradient"])
    (second,) = torch.autograd.grad(grads[0].sum(), cost, create_graph=True, allow_unused=True)
    assert second is None  # of another call's cost


@pytest.mark.parametrize("name", ["value", "smoothed_value", "squared_distances", "fused_value"])
def test_a_direct_call_in_transforms(name: str) -> None:
    leaf, *others = (t.detach() if isinstance(t, Tensor) else t for t in direct(2, 3, 4)[name])
    operator = call(name)

    def total(z: Tensor) -> Tensor:
        return operator(z, *others).sum()

    z = leaf.clone().requires_grad_()
    (truth,) = torch.autograd.grad(total(z), z)
    torch.testing.assert_close(torch.func.grad(total)(leaf), truth)
    slope = (truth * leaf).sum()
    torch.testing.assert_close(torch.func.jvp(total, (leaf,), (leaf,))[1], slope)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(leaf, leaf)
        tangent = torch.autograd.forward_ad.unpack_dual(total(dual)).tangent
    torch.testing.assert_close(tangent, (truth * leaf).sum())
    torch._dynamo.reset()
    compiled = torch.compile(total, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(compiled(z), z)[0], truth)


@pytest.mark.parametrize("name", sorted(ops.OPERATORS.keys() - REFUSED))
def test_a_direct_call_under_vmap_is_that_of_the_batch(name: str) -> None:
    """Of some arguments, over whatever dimension."""
    batch = [t.detach() if isinstance(t, Tensor) else t for t in direct(2, 3, 4)[name]]
    for kept in range(2):  # the others have no dimension of vmap
        item = [t[0] if isinstance(t, Tensor) and i > kept else t for i, t in enumerate(batch)]
        dims = [-1 if isinstance(t, Tensor) and i <= kept else None for i, t in enumerate(item)]
        given = [t.movedim(0, -1) if d else t for t, d in zip(item, dims, strict=True)]
        found = tree_leaves(torch.func.vmap(call(name), in_dims=tuple(dims))(*given))
        of_batch = [t if d else _expanded(t) for t, d in zip(item, dims, strict=True)]
        for a, b in zip(found, tree_leaves(call(name)(*of_batch)), strict=True):
            torch.testing.assert_close(a, b)


def _expanded(argument: Any) -> Any:
    return argument.expand(2, *argument.shape) if isinstance(argument, Tensor) else argument


def test_distances_whose_features_have_fewer_dimensions_than_their_gradient() -> None:
    draw = torch.Generator().manual_seed(0)
    x, y, g = (torch.rand(2, *of, generator=draw) for of in ((3, 5), (2, 4, 5), (2, 3, 4)))
    operator = call("squared_distances_vjp")
    found = torch.func.vmap(lambda x, y, g: operator(x, y, g, True, True))(x, y, g)
    truth = zip(*(operator(*z, True, True) for z in zip(x, y, g, strict=True)), strict=True)
    for a, b in zip(found, truth, strict=True):
        torch.testing.assert_close(a, torch.stack(b))


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_state_is_refused_in_transforms(name: str) -> None:
    arguments = [t.detach() if isinstance(t, Tensor) else t for t in direct(2, 3, 4)[name]]
    dims = (0, *(None for _ in arguments[1:]))
    with pytest.raises(NotImplementedError, match="without a state"):
        torch.func.vmap(call(name), in_dims=dims)(arguments[0][None], *arguments[1:])


@pytest.mark.parametrize(
    "name",
    ["value", "gradient", "smoothed_value", "squared_distances"]
    + ["monotonic_sum", "monotonic_product", "monotonic_path"],
)
def test_opcheck_with_gradients(name: str) -> None:
    torch.library.opcheck(call(name), direct(2, 3, 4)[name])


def test_a_direct_call_with_gradient_takes_no_other_shapes() -> None:
    x, y = torch.zeros(3, 2, 2, requires_grad=True), torch.zeros(2, 2)
    with pytest.raises(ValueError, match="equal leading dimensions"):
        call("squared_distances")(x, y)
    arguments = list(direct(2, 3, 4)["fused_gradient"])
    arguments[6] = "euclidean"
    with pytest.raises(ValueError, match="kind must be one of"):
        call("fused_gradient")(*arguments)


GRAPHS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "soft_dtw": sk.soft_dtw,
    "s2dtw": sk.s2dtw,
    "soft_dtw_divergence": sk.soft_dtw_divergence,
    "dilate_loss": sk.dilate_loss,
    "entropy": lambda x, y: sk.soft_dtw_alignment(x, y).entropy,
    "s2dtw_alignment": lambda x, y: sk.s2dtw_alignment(x, y).expected,
}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_with_symbols_for_sizes(name: str) -> None:
    """Of make_fx: values, and gradients through its operators."""
    function = GRAPHS[name]
    draw = torch.Generator().manual_seed(0)
    x, y, z, w = (torch.rand(3, n, 2, generator=draw) for n in (6, 5, 7, 9))
    graph = make_fx(lambda a, b: function(a, b), tracing_mode="symbolic")(x, y)
    for a, b in ((x, y), (w, z), (z, w), (w, w), (w, w.clone())):
        assert_close(graph(a[1:], b[1:]), function(a[1:], b[1:]), 1e-6, "value")
        c = a[1:].clone().requires_grad_()
        found, truth = (torch.autograd.grad(f(c, b[1:]).sum(), c)[0] for f in (graph, function))
        assert_close(found, truth, 1e-5, "gradient")


@pytest.mark.parametrize("name", ["soft_dtw", "s2dtw", "soft_dtw_divergence"])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_graph_of_a_transform(name: str, reverse: bool) -> None:
    function = GRAPHS[name]

    def derivative(x: Tensor, y: Tensor) -> Any:
        of = torch.func.vmap(torch.func.grad(function)) if reverse else torch.func.jacfwd(function)
        return of(x, y)

    (x, y), (z, w) = data(3, 5, 6), (t.flip(1) for t in SMALL)
    torch.testing.assert_close(make_fx(derivative)(x, y)(z, w), derivative(z, w))
