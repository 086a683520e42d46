"""The modules are the functions, and behave as modules do."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from helpers import assert_close
from torch import nn

from softdtw_kernels import S2DTWLoss, SoftDTWLoss, s2dtw, soft_dtw, soft_dtw_divergence

pytestmark = pytest.mark.quick

LENGTHS = {"x_lengths": torch.tensor([6, 2, 4]), "y_lengths": torch.tensor([1, 7, 5])}


def _pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 6, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(3, 7, 4, generator=generator, dtype=torch.float64)
    return x, y


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_losses_are_the_functions(reduction: str, backend: str) -> None:
    x, y = _pair()
    shared = {"gamma": 0.3, "reduction": reduction, "backend": backend}
    cases = [
        (SoftDTWLoss(**shared), soft_dtw, {}),
        (SoftDTWLoss(divergence=True, **shared), soft_dtw_divergence, {}),
        (
            SoftDTWLoss(cost="cosine", bandwidth=2, **shared),
            soft_dtw,
            {"cost": "cosine", "bandwidth": 2},
        ),
        (S2DTWLoss(**shared), s2dtw, {}),
        (
            S2DTWLoss(smoothing=False, dummy_cost=None, origin_count=3, **shared),
            s2dtw,
            {"smoothing": False, "dummy_cost": None, "origin_count": 3},
        ),
    ]
    for module, function, arguments in cases:
        truth = function(x, y, **shared, **arguments)
        assert torch.equal(module(x, y), truth)
        of_lengths = function(x, y, **shared, **arguments, **LENGTHS)
        assert torch.equal(module(x, y, *LENGTHS.values()), of_lengths)


@pytest.mark.parametrize("function", [soft_dtw, s2dtw, soft_dtw_divergence])
def test_reductions(function: object, backend: str) -> None:
    x, y = _pair()
    values = function(x, y, backend=backend)
    for name, truth in (("mean", values.mean()), ("sum", values.sum())):
        got = function(x, y, reduction=name, backend=backend)
        assert got.shape == ()
        assert_close(got, truth, 1e-12 * values.abs().sum().item(), name)


def test_the_defaults_are_those_of_the_issue() -> None:
    x, y = _pair()
    truth = soft_dtw(x, y, gamma=1.0, cost="sqeuclidean").mean()
    assert torch.equal(SoftDTWLoss()(x, y), truth)
    truth = s2dtw(
        x, y, gamma=0.1, cost="shifted_cosine", smoothing=True, dummy_cost=0.5, origin_count=1
    )
    assert torch.equal(s2dtw(x, y), truth)
    assert torch.equal(S2DTWLoss()(x, y), truth.mean())


@pytest.mark.parametrize("module", [SoftDTWLoss(0.2, divergence=True, bandwidth=3), S2DTWLoss(0.2)])
def test_copy_pickle_and_save(module: nn.Module) -> None:
    x, y = _pair()
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for other in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(file, weights_only=False),
    ):
        assert torch.equal(other(x, y), module(x, y))
        assert repr(other) == repr(module)


def test_the_representation_names_the_settings() -> None:
    text = repr(SoftDTWLoss(0.25, cost="euclidean", bandwidth=7, divergence=True, reduction="sum"))
    for part in ("SoftDTWLoss", "gamma=0.25", "euclidean", "bandwidth=7", "divergence=True", "sum"):
        assert part in text
    text = repr(S2DTWLoss(dummy_cost=None, smoothing=False))
    for part in ("S2DTWLoss", "gamma=0.1", "dummy_cost=None", "smoothing=False", "mean"):
        assert part in text
    text = repr(S2DTWLoss(nn.Parameter(torch.tensor(0.25)), dummy_cost=torch.tensor(0.5)))
    assert "gamma=tensor(0.2500), " in text
    assert "\n" not in text


def test_learned_gamma_and_dummy_cost_are_parameters() -> None:
    gamma = nn.Parameter(torch.tensor(0.5))
    dummy = nn.Parameter(torch.tensor(0.2))
    module = S2DTWLoss(gamma, dummy_cost=dummy)
    assert set(dict(module.named_parameters())) == {"gamma", "dummy_cost"}
    module(*_pair()).backward()
    for parameter in (gamma, dummy):
        assert parameter.grad is not None
        assert parameter.grad.isfinite()
        assert parameter.grad != 0
    clone = SoftDTWLoss(nn.Parameter(torch.tensor(3.0)))
    clone.load_state_dict(SoftDTWLoss(nn.Parameter(torch.tensor(0.5))).state_dict())
    assert clone.gamma.item() == 0.5


@pytest.mark.parametrize("module", [SoftDTWLoss(0.1), SoftDTWLoss(0.1, divergence=True)])
def test_training_by_the_loss_reaches_the_target(module: nn.Module) -> None:
    """Gradient descent on a sequence near its target brings it there: the job the loss is for."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(4, 2, generator=generator)
    sequence = (target + 0.3 * torch.randn(4, 2, generator=generator)).requires_grad_()
    before = soft_dtw(sequence.detach(), target, gamma=0.0)
    optimizer = torch.optim.Adam([sequence], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        module(sequence, target).backward()
        optimizer.step()
    assert soft_dtw(sequence.detach(), target, gamma=0.0) < 0.05 * before
