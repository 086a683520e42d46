"""A message says what to pass instead: to those who come from another library or another container
of sequences, who forgot a dimension, or whose device has no kernels. Where it names a call, that
call does what it says.
"""

from __future__ import annotations

import pickle
import types
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence, pad_sequence

from softdtw_kernels import (
    S2DTWLoss,
    SoftDTWFunction,
    SoftDTWLoss,
    cost_matrix,
    s2dtw,
    s2dtw_alignment,
    s2dtw_from_cost,
    soft_dtw,
    soft_dtw_alignment,
    soft_dtw_barycenter,
    soft_dtw_divergence,
    soft_dtw_from_cost,
    soft_dtw_kmeans,
)
from softdtw_kernels import _backends as backends
from softdtw_kernels._cuda.launcher import import_cupy

SEQUENCES = [torch.rand(4, 3), torch.rand(2, 3)]
X, Y = torch.rand(2, 4, 3), torch.rand(2, 5, 3)
MASK = torch.tensor([[True, True, True, True], [True, True, False, False]])


def by_parts(parameter: object) -> str:
    """An id of the words in a message: what is in memory differs from process to process."""
    is_words = isinstance(parameter, list) and all(isinstance(word, str) for word in parameter)
    return " ".join(parameter)[:40] if is_words else ""


def raised(error: type[Exception], parts: list[str], call: Callable[[], Any]) -> str:
    """The message, which has every part."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is error
    for part in parts:
        assert part in message, f"{part!r} is not in the message {message!r}"
    return message


def nested(layout: torch.layout) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a prototype of torch
        return torch.nested.nested_tensor(SEQUENCES, layout=layout)


def quantized(x: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated
        return torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)


CONTAINERS = [
    (lambda: pack_sequence(SEQUENCES), ["PackedSequence", "pad_packed_sequence", "batch_first"]),
    (lambda: SEQUENCES, ["list", "pad_sequence", "batch_first=True", "lengths"]),
    (lambda: tuple(SEQUENCES), ["tuple", "pad_sequence", "batch_first=True", "lengths"]),
    (lambda: X.tolist(), ["list", "torch.tensor("]),
    (lambda: X.numpy(), ["ndarray", "torch.as_tensor("]),
    (lambda: nested(torch.jagged), ["nested", ".to_padded_tensor(0.0)", "lengths", ".unbind()"]),
    (lambda: nested(torch.strided), ["nested", ".to_padded_tensor(0.0)", "lengths", ".unbind()"]),
    (lambda: X.cfloat(), ["complex64", ".abs()", ".real", "torch.view_as_real(", ".flatten(-2)"]),
    (lambda: X.long(), ["int64", ".float()"]),
    (lambda: X.bool(), ["bool", ".float()"]),
    (lambda: quantized(X), ["qint8", ".dequantize()"]),
]

RAGGED = [np.ones((4, 3)), np.ones((2, 3))]
FLAT = [np.ones(4), np.ones(2)]


def of_objects(sequences: list[np.ndarray]) -> np.ndarray:
    array = np.empty(len(sequences), object)
    array[:] = sequences
    return array


# Each advice is the text between the last of these words and the end of the call in it.
TO_CONVERT: list[Any] = [
    RAGGED,
    [sequence.tolist() for sequence in RAGGED],
    of_objects(RAGGED),
    FLAT,
    [sequence.tolist() for sequence in FLAT],
    of_objects(FLAT),
    [torch.ones(4), torch.ones(2)],
    SEQUENCES,
    X.numpy()[:, ::-1],
    X.numpy().astype(">f4"),
    X.numpy()[::-1].astype(">f8"),
    X.tolist(),
]


@pytest.mark.parametrize("make, parts", CONTAINERS, ids=by_parts)
@pytest.mark.parametrize("function", [soft_dtw, s2dtw, soft_dtw_divergence, cost_matrix])
def test_other_containers(
    function: Callable[..., Tensor], make: Callable[[], Any], parts: list[str]
) -> None:
    raised(TypeError, ["x must be", *parts], lambda: function(make(), Y))
    raised(TypeError, ["y must be", *parts], lambda: function(Y, make()))


@pytest.mark.parametrize("make, parts", CONTAINERS, ids=by_parts)
@pytest.mark.parametrize("loss", [SoftDTWLoss(), SoftDTWLoss(divergence=True), S2DTWLoss()])
def test_modules_call_them_by_their_own_names(
    loss: torch.nn.Module, make: Callable[[], Any], parts: list[str]
) -> None:
    raised(TypeError, ["input must be", *parts], lambda: loss(make(), Y))
    raised(TypeError, ["target must be", *parts], lambda: loss(Y, make()))


@pytest.mark.parametrize("loss", [SoftDTWLoss(), SoftDTWLoss(divergence=True), S2DTWLoss()])
@pytest.mark.parametrize(
    "arguments, error, parts",
    [
        ((X[0, 0], Y), ValueError, ["input must", "(3,)", "input[:, None]"]),
        ((X, Y[..., :2]), ValueError, ["input and target must", "(2, 4, 3)", "(2, 5, 2)"]),
        ((X, Y.double()), TypeError, ["input and target must", "float32", "float64"]),
        ((X, torch.rand(3, 5, 3)), ValueError, ["input (*, N, D) and target (*, M, D)"]),
        ((X, Y.to("meta")), ValueError, ["input and target must", "cpu", "meta"]),
        ((X, Y, [1, 9]), ValueError, ["input_lengths must", "1..4", "got 9"]),
        ((X, Y, None, [0, 1]), ValueError, ["target_lengths must", "1..5", "got 0"]),
        ((X, Y, None, [1, 1, 1]), ValueError, ["target_lengths must", "(2,)", "(3,)"]),
        ((X, Y, MASK), TypeError, ["input_lengths must", "bool", "mask.sum(-1)"]),
        ((X, Y, None, [1.0, 1.0]), TypeError, ["target_lengths", "torch.tensor(target_lengths)"]),
    ],
    ids=by_parts,
)
def test_modules_use_their_own_names_in_every_message(
    loss: torch.nn.Module, arguments: tuple[Any, ...], error: type[Exception], parts: list[str]
) -> None:
    message = raised(error, parts, lambda: loss(*arguments))
    words = message.replace("(", " ").replace(".", " ").replace("[", " ").split()
    assert not {"x", "y", "x_lengths", "y_lengths"} & set(words)


def test_what_the_messages_advise_works() -> None:
    truth = torch.stack([soft_dtw(x, y) for x, y in zip(SEQUENCES, Y, strict=True)])
    padded, lengths = pad_packed_sequence(pack_sequence(SEQUENCES), batch_first=True)
    torch.testing.assert_close(soft_dtw(padded, Y, x_lengths=lengths), truth)
    padded, counts = pad_sequence(SEQUENCES, batch_first=True), [len(s) for s in SEQUENCES]
    torch.testing.assert_close(soft_dtw(padded, Y, x_lengths=counts), truth)
    for layout in (torch.jagged, torch.strided):
        x = nested(layout)
        counts = [len(sequence) for sequence in x.unbind()]
        torch.testing.assert_close(soft_dtw(x.to_padded_tensor(0.0), Y, x_lengths=counts), truth)
    for mask in (MASK.sum(-1), (~~MASK).sum(-1)):
        torch.testing.assert_close(soft_dtw(padded, Y, x_lengths=mask), truth)
    parts = torch.view_as_real(torch.complex(X, X + 1)).flatten(-2)
    assert parts.shape == (2, 4, 6) and soft_dtw(parts, parts).shape == (2,)
    assert soft_dtw(X[0, 0][:, None], Y[0, 0][:, None]).shape == ()


@pytest.mark.parametrize("x", TO_CONVERT, ids=range(len(TO_CONVERT)))
def test_what_the_messages_advise_is_a_tensor(x: Any) -> None:
    """Their code is run as it stands there."""
    message = raised(TypeError, ["x must be a torch.Tensor"], lambda: soft_dtw(x, Y))
    code = message.partition(" with ")[2]
    code, _, lengths = code.partition(", and pass the lengths ")
    names = {"torch": torch, "x": x}
    tensor = eval(code, names)
    assert tensor.dim() == 3 and len(tensor) == 2
    assert eval(lengths, names) == [4, 2] if lengths else tensor.shape == X.shape
    other = torch.ones(2, 5, tensor.shape[-1], dtype=tensor.dtype)
    assert soft_dtw(tensor, other, x_lengths=eval(lengths, names) if lengths else None).dim() == 1


@pytest.mark.parametrize("x", [[[], [1.0]], [3, [1.0, 2.0]], [(), ()], ["a", "bc"], [None]])
def test_lists_of_anything_have_a_message(x: list[Any]) -> None:
    raised(TypeError, ["x must be a torch.Tensor", "got list"], lambda: soft_dtw(x, Y))


def test_matrices_of_several_sizes_are_not_padded_as_sequences() -> None:
    assert "pad_sequence" not in raised(TypeError, ["list"], lambda: soft_dtw_from_cost(RAGGED))


@pytest.mark.parametrize("value", ["False", "no", 1, 0, None, np.ones(2, bool)], ids=repr)
def test_flags_are_true_or_false(value: Any) -> None:
    """Of a word, as it comes from a file of settings, "False" would be one that is true."""
    expected = ["must be True or False, got", repr(value)]
    for name, functions in (
        ("pairwise", (soft_dtw, s2dtw, soft_dtw_divergence, cost_matrix, soft_dtw_alignment)),
        ("smoothing", (s2dtw, s2dtw_alignment)),
    ):
        for function in functions:
            raised(TypeError, [name, *expected], lambda f=function, n=name: f(X, Y, **{n: value}))
    for name, function in (("smoothing", S2DTWLoss), ("divergence", SoftDTWLoss)):
        raised(TypeError, [name, *expected], lambda f=function, n=name: f(**{n: value}))
    raised(TypeError, ["smoothing"], lambda: s2dtw_from_cost(X, smoothing=value))
    raised(TypeError, ["divergence"], lambda: soft_dtw_barycenter(X, divergence=value))


def test_flags_of_numpy() -> None:
    assert torch.equal(soft_dtw(X, Y, pairwise=np.bool_(True)), soft_dtw(X, Y, pairwise=True))
    assert SoftDTWLoss(divergence=np.bool_(True)).divergence is True


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_dummy_cost_is_finite_in_a_tensor_too(value: float) -> None:
    for dummy in (value, torch.tensor(value), torch.tensor([0.5, value])):
        for function in (s2dtw, s2dtw_alignment, S2DTWLoss(dummy_cost=0.5)):
            if isinstance(function, S2DTWLoss):
                function.dummy_cost = dummy
            settings = {} if isinstance(function, S2DTWLoss) else {"dummy_cost": dummy}
            raised(
                ValueError,
                ["dummy_cost must be finite", str(value)],
                lambda f=function, s=settings: f(X, Y, **s),
            )


def test_lengths_that_are_no_int64() -> None:
    for many in (2**63, -(2**70)):
        raised(ValueError, ["x_lengths", "int64", str(many)], lambda m=many: soft_dtw(
            X, Y, x_lengths=[3, m]
        ))  # fmt: skip


@pytest.mark.parametrize("container", [set, dict.fromkeys, lambda x: dict.fromkeys(x).keys(), iter])
def test_sequences_come_in_order(container: Callable[[Any], Any]) -> None:
    for function in (soft_dtw_barycenter, lambda x: soft_dtw_kmeans(x, 1)):
        raised(TypeError, ["sequences must be", "list of tensors"], lambda f=function: f(
            container(SEQUENCES)
        ))  # fmt: skip


def test_a_callback_is_a_function() -> None:
    raised(TypeError, ["callback", "int"], lambda: soft_dtw_kmeans(X, 1, callback=3))


@pytest.mark.parametrize("name", ["x_lengths", "y_lengths"])
@pytest.mark.parametrize(
    "lengths, parts",
    [
        (MASK, ["bool", "mask.sum(-1)", "(~mask).sum(-1)"]),
        (MASK.tolist(), ["bool", "mask.sum(-1)"]),
        (torch.ones(2), ["float32", "lengths.long()"]),
        ([1.0, 2.0], ["float32", "torch.tensor(", ").long()"]),
        (torch.ones(2).cfloat(), ["complex64", "lengths.real.long()"]),
    ],
    ids=by_parts,
)
def test_lengths(name: str, lengths: Any, parts: list[str]) -> None:
    for function in (soft_dtw, s2dtw, soft_dtw_divergence):
        raised(TypeError, [f"{name} must be integers", *parts], lambda f=function: f(
            X, Y, **{name: lengths}
        ))  # fmt: skip
    raised(TypeError, [name, *parts], lambda: SoftDTWFunction.apply(
        cost_matrix(X, Y), 1.0, None, *((lengths, None) if name[0] == "x" else (None, lengths))
    ))  # fmt: skip


def test_a_cost_matrix_gets_the_advice_that_fits_one() -> None:
    message = raised(TypeError, ["cost.abs()"], lambda: soft_dtw_from_cost(X.cfloat()))
    assert "features" not in message
    message = raised(ValueError, ["(3,)", "(*, N, M)"], lambda: soft_dtw_from_cost(X[0, 0]))
    assert "[:, None]" not in message
    raised(TypeError, ["nested"], lambda: soft_dtw_from_cost(nested(torch.strided)))
    raised(TypeError, ["nested"], lambda: SoftDTWFunction.apply(nested(torch.strided), 1.0))


def test_a_barycenter_of_packed_or_nested_sequences() -> None:
    packed = pack_sequence(SEQUENCES)
    raised(TypeError, ["sequences", "pad_packed_sequence"], lambda: soft_dtw_barycenter(packed))
    for layout in (torch.jagged, torch.strided):
        x = nested(layout)
        raised(TypeError, ["sequences", "to_padded_tensor"], lambda x=x: soft_dtw_barycenter(x))


def test_arrays_of_sequences_are_converted_as_a_whole() -> None:
    for function in (soft_dtw_barycenter, lambda x: soft_dtw_kmeans(x, 1)):
        raised(TypeError, ["sequences must", "torch.as_tensor(sequences)"], lambda f=function: f(
            X.numpy()
        ))  # fmt: skip


@pytest.mark.parametrize("lengths", [[0, 3], [3, 5]])
@pytest.mark.parametrize("init", [None, torch.rand(3, 3)])
def test_lengths_of_sequences_by_their_own_name(lengths: list[int], init: Tensor | None) -> None:
    message = raised(ValueError, ["lengths must lie in 1..4", "got "], lambda: soft_dtw_barycenter(
        X, lengths=lengths, init=init
    ))  # fmt: skip
    assert message.startswith("lengths")


def test_features_that_come_first() -> None:
    x, y = X.mT, Y.mT  # (2, 3, 4) and (2, 3, 5): channels first, as convolutions have them
    parts = ["D in their last dimension", "(*, D, N)", "x.mT and y.mT"]
    raised(ValueError, parts, lambda: soft_dtw(x, y))
    torch.testing.assert_close(soft_dtw(x.mT, y.mT), soft_dtw(X, Y))
    raised(ValueError, ["input.mT and target.mT"], lambda: SoftDTWLoss()(x, y))
    raised(ValueError, ["x.mT and y.mT"], lambda: cost_matrix(x, y))
    message = raised(ValueError, ["D in their last dimension"], lambda: soft_dtw(X, Y[..., :2]))
    assert "mT" not in message


@pytest.mark.parametrize("function", [soft_dtw_barycenter, lambda x: soft_dtw_kmeans(x, 1)])
def test_features_that_come_first_in_a_list(function: Callable[[list[Tensor]], Any]) -> None:
    sequences = [sequence.mT for sequence in SEQUENCES]
    raised(ValueError, ["(D, N)", "[s.mT for s in sequences]"], lambda: function(sequences))
    function([s.mT for s in sequences])


def test_a_named_cost_is_no_cost_function_that_failed() -> None:
    with torch.inference_mode():
        x = X.clone()
    y = Y.clone().requires_grad_()
    message = raised(RuntimeError, ["Inference"], lambda: soft_dtw(x, y, cost="manhattan"))
    assert "cost function" not in message


@pytest.mark.parametrize(
    "arguments, parts",
    [
        ({"use_cuda": True}, ["'use_cuda'", "device follows", "leave it out"]),
        ({"normalize": True}, ["'normalize'", "divergence=normalize"]),
        ({"dist_func": torch.cdist}, ["'dist_func'", "cost=dist_func"]),
        ({"cost_function": torch.cdist}, ["'cost_function'", "cost=cost_function"]),
        ({"sakoe_chiba_radius": 1}, ["'sakoe_chiba_radius'", "bandwidth=sakoe_chiba_radius"]),
        ({"global_constraint": "sakoe_chiba"}, ["'global_constraint'", "pass bandwidth", "+inf"]),
        ({"itakura_max_slope": 2.0}, ["'itakura_max_slope'", "soft_dtw_from_cost", "+inf"]),
        ({"warp": 1.0}, ["'warp'", "warp_cost=warp"]),
        ({"normalization": "N"}, ["'normalization'", "divide"]),
        ({"gama": 1.0}, ["'gama'", "help(SoftDTWLoss)"]),
    ],
)
def test_arguments_of_other_libraries(arguments: dict[str, Any], parts: list[str]) -> None:
    raised(TypeError, ["SoftDTWLoss has no argument", *parts], lambda: SoftDTWLoss(**arguments))


def test_arguments_that_s2dtw_lacks() -> None:
    raised(TypeError, ["S2DTWLoss has no argument 'use_cuda'", "leave it out"], lambda: S2DTWLoss(
        use_cuda=True
    ))  # fmt: skip
    for name in ("gama", "normalize", "sakoe_chiba_radius", "warp"):
        raised(TypeError, [f"{name!r}", "help(S2DTWLoss)"], lambda n=name: S2DTWLoss(**{n: 1}))


@pytest.mark.parametrize("loss", [SoftDTWLoss, S2DTWLoss])
def test_use_cuda_in_the_place_of_gamma(loss: type) -> None:
    raised(TypeError, ["gamma must be", "True", "no use_cuda"], lambda: loss(True, 0.1))


def test_a_module_is_still_pickled() -> None:
    loss = pickle.loads(pickle.dumps(SoftDTWLoss(0.3, divergence=True)))
    torch.testing.assert_close(loss(X, Y), SoftDTWLoss(0.3, divergence=True)(X, Y))


def by_index(x: Tensor, y: Tensor) -> Tensor:
    return torch.einsum("bnd,bmd->bnm", x, y)


@pytest.mark.parametrize("function", [soft_dtw, s2dtw, soft_dtw_divergence, cost_matrix])
def test_a_cost_function_that_fails(function: Callable[..., Tensor]) -> None:
    assert function(X, Y, cost=by_index).shape[0] == 2
    shapes = ["(2, 1, 4, 3)", "(1, 2, 5, 3)", "(2, 2, 4, 5)"]
    with pytest.raises(RuntimeError, match="the cost function failed: RuntimeError") as caught:
        function(X, Y, cost=by_index, pairwise=True)
    message, cause = str(caught.value), caught.value.__cause__
    assert all(shape in message for shape in shapes)
    assert isinstance(cause, RuntimeError) and str(cause) in message


def test_a_module_leaves_the_words_of_a_cost_function_alone() -> None:
    def fails(a: Tensor, b: Tensor) -> Tensor:
        raise ValueError("x and y differ")

    raised(RuntimeError, ["ValueError: x and y differ"], lambda: SoftDTWLoss(cost=fails)(X, Y))


def test_lack_of_memory_in_a_cost_function_stays_what_it_is() -> None:
    def fails(a: Tensor, b: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("much")

    raised(torch.OutOfMemoryError, ["much"], lambda: soft_dtw(X, Y, cost=fails))


@pytest.mark.parametrize(
    "cost, error, parts",
    [
        (lambda x, y: (x @ y.mT)[..., 0], ValueError, ["(2, 4, 5)", "(2, 4)"]),
        (lambda x, y: (x @ y.mT).sum(), ValueError, ["(2, 4, 5)", "()"]),
        (lambda x, y: (x @ y.mT).mT, ValueError, ["(2, 4, 5)", "(2, 5, 4)"]),
        (lambda x, y: (x @ y.mT).to_sparse(), TypeError, ["dense", "sparse_coo"]),
        (lambda x, y: nested(torch.strided), TypeError, ["dense", "nested"]),
        (lambda x, y: (x @ y.mT).cfloat(), TypeError, ["complex64", "float32"]),
        (lambda x, y: (x @ y.mT) > 0, TypeError, ["bool", "float32"]),
        (lambda x, y: (x @ y.mT).numpy(), TypeError, ["ndarray", "torch.Tensor"]),
        (lambda x, y: (x @ y.mT).to("meta"), ValueError, ["meta", "cpu"]),
    ],
)
def test_what_a_cost_function_returns(
    cost: Callable[..., Any], error: type[Exception], parts: list[str]
) -> None:
    for function in (soft_dtw, s2dtw, cost_matrix, SoftDTWLoss(cost=cost)):
        settings = {} if isinstance(function, SoftDTWLoss) else {"cost": cost}
        raised(
            error,
            ["the cost function must return", *parts],
            lambda f=function, s=settings: f(X, Y, **s),
        )


def on(device: str) -> Any:
    return types.SimpleNamespace(device=torch.device(device))


@pytest.mark.parametrize("asked", [None, "reference"])
def test_without_float64_the_advice_is_another_device(asked: str | None) -> None:
    message = raised(
        ValueError, ["mps", "float64", ".cpu()"], lambda: backends.select(asked, on("mps"))
    )
    assert "backend=" not in message


def test_other_devices_have_the_reference() -> None:
    raised(ValueError, ["xpu", "backend='reference'"], lambda: backends.select(None, on("xpu")))
    assert backends.select("reference", on("xpu")) == "reference"


def test_rocm_is_not_told_to_install_cuda_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.2")
    message = raised(
        ImportError,
        ["ROCm 6.2", "backend='reference'", ".cpu()"],
        import_cupy.__wrapped__,
    )
    assert "[cuda" not in message and "extra" not in message
