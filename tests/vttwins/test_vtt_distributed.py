"""Two real processes have the gradient of one on the same global batch, on the real model."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from forked import Forked, run_ranks, run_script
from helpers import Forks
from torch import nn

from examples.vttwins.distributed import CrossRankBatchNorm3d, use_cross_rank_batch_norm
from examples.vttwins.model import VideoTextModel

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("two_processes.py")
MODES = ["evaluation", "cross-rank"]


def run_alone(folder: Path) -> None:
    process = Forked(partial(run_script, SCRIPT, str(folder), *MODES))
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output[-3000:]


@pytest.fixture(scope="module")
def runs(compiled: None, ranks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of one process and of two; each does all modes, as it is slow to start."""
    folder = tmp_path_factory.mktemp("gradients")
    run_alone(folder)
    run_ranks(ranks, SCRIPT, str(folder), *MODES)
    return folder


@pytest.mark.parametrize("mode", MODES)
def test_the_gradient_of_two_processes_is_that_of_one(mode: str, runs: Path) -> None:
    one, *two = (
        torch.load(runs / f"{mode}-{world}-{rank}.pt", weights_only=True)
        for world, rank in ((1, 0), (2, 0), (2, 1))
    )
    torch.testing.assert_close(sum(part["loss"] for part in two) / 2, one["loss"])
    largest = 0.0
    for name, expected in one["gradients"].items():
        for rank in range(2):
            difference = (two[rank]["gradients"][name] - expected).abs().max().item()
            assert difference <= 1e-6, f"{name}, rank {rank}: {difference}"
            largest = max(largest, difference)
        assert expected.abs().max() > 0, f"{name} has no gradient: nothing is compared"
    for name, expected in one["buffers"].items():
        torch.testing.assert_close(two[0]["buffers"][name], expected, msg=name)
    print(f"largest difference of a gradient, {mode}: {largest:.2e}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_cross_rank_batch_norm_alone_is_batch_norm(
    dtype: torch.dtype, momentum: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    plain = nn.BatchNorm3d(5, momentum=momentum)
    crossed = CrossRankBatchNorm3d(5, momentum=momentum)
    if dtype == torch.float64:
        plain, crossed = plain.double(), crossed.double()
    # Its own arithmetic, with collectives of one process.
    monkeypatch.setattr("examples.vttwins.distributed.world_size", lambda: 2)
    monkeypatch.setattr("examples.vttwins.distributed.sum_over_ranks", lambda x: x)
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {}
    for _ in range(3):
        x = (torch.randn(4, 5, 2, 3, 3, dtype=torch.float64) * 2 + 30).to(dtype)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        torch.testing.assert_close(crossed(a), plain(b), **tolerance)
        weight = torch.rand(x.shape, dtype=torch.float64).to(dtype)
        (crossed(a) * weight).sum().backward()
        (plain(b) * weight).sum().backward()
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-2, atol=2e-2 if tolerance else 1e-5)
    if not tolerance:
        torch.testing.assert_close(crossed.state_dict(), plain.state_dict())


def test_conversion_keeps_names_and_values() -> None:
    model = VideoTextModel(vocabulary_size=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    use_cross_rank_batch_norm(model)
    kinds = {type(m) for m in model.modules() if isinstance(m, nn.BatchNorm3d)}
    assert kinds == {CrossRankBatchNorm3d}
    torch.testing.assert_close(dict(model.state_dict()), before)
