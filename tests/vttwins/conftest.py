"""What the tests of examples/vttwins share: a tiny narrated set, written once a session."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # examples/ is no installed package

from helpers import Forks  # noqa: E402  (after the path)
from narrow import BLOCKS  # noqa: E402  (likewise)

from examples.vttwins import model, synthetic  # noqa: E402  (likewise)
from examples.vttwins.loss import SequenceLoss  # noqa: E402  (likewise)


@pytest.fixture(scope="module")
def narrow() -> Iterator[None]:
    """The models of a module's tests have few channels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "INCEPTION", BLOCKS)
        yield


@pytest.fixture(scope="session")
def ranks() -> Iterator[Forks]:
    """Processes that have imported what a rank needs. Not forked from that of the tests: gloo, in
    the destructor of its group, may wait forever in a fork of one that has started threads.
    """
    # What DistributedDataParallel and the first loss import.
    imported = "examples.vttwins.train", "torch._dynamo", "softdtw_kernels._cpu.operators"
    with Forks(*imported, path=ROOT) as started:
        yield started


@pytest.fixture(scope="session")
def narrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of 8 training and 2 test videos of 32 pixels, 8 steps of a second each."""
    world = synthetic.World(
        tasks=2, steps_per_task=8, train_videos=8, size=32, step_seconds=1.0, shortest=6
    )
    return synthetic.generate(world, tmp_path_factory.mktemp("narrated"))


@pytest.fixture(scope="session")
def compiled() -> None:
    """The kernels of a run are in the cache: ranks start at once, and each would compile them."""
    for dtype in (torch.float32, torch.float64):
        for direction in ("t2v", "symmetric"):
            video, text = (torch.randn(2, k, 4, dtype=dtype, requires_grad=True) for k in (2, 3))
            SequenceLoss(direction=direction)(video, text).backward()
