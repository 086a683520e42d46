"""Ways to need less memory: activation checkpointing changes nothing, bfloat16 little."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.vttwins import config, train
from examples.vttwins.distributed import Place, use_cross_rank_batch_norm
from examples.vttwins.loss import SequenceLoss
from examples.vttwins.model import FRONT_ENDS, VideoTextModel


def batch(sequences: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    video = torch.rand(sequences, 2, 3, 4, 32, 32, generator=generator)
    return video, torch.randint(0, 9, (sequences, 3, 5), generator=generator)


def gradients(model: nn.Module, bf16: bool = False, times: int = 1) -> tuple[Tensor, list[Tensor]]:
    """The loss and the gradient of the loss of training, added up over two batches."""
    video, words = batch()
    dtype = next(model.parameters()).dtype
    loss = SequenceLoss(direction="symmetric")
    for _ in range(times):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            value = train.batch_loss(model, loss, video.to(dtype), words, Place())
        value.backward()
    return value.detach(), [p.grad for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_checkpointing_has_the_same_gradients_and_statistics(front_end: str, bf16: bool) -> None:
    torch.manual_seed(0)
    plain = VideoTextModel(front_end, vocabulary_size=9, embedding_dim=8)
    for k, norm in enumerate(m for m in plain.modules() if isinstance(m, nn.BatchNorm3d)):
        norm.momentum = (0.1, None)[k % 2]
    repeated = copy.deepcopy(plain)
    repeated.checkpointing = True
    (value, expected), (again, found) = (gradients(m, bf16, 2) for m in (plain, repeated))
    assert torch.equal(value, again)
    assert all(a.abs().max() > 0 for a in expected)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    for (name, a), b in zip(plain.named_buffers(), repeated.buffers(), strict=True):
        assert torch.equal(a, b), name
    assert int(repeated.conv1.bn1.num_batches_tracked) == 2
    assert repeated.conv1.bn1.momentum == 0.1 and repeated.train().conv1.bn1.track_running_stats


def test_checkpointing_keeps_the_statistics_over_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    # The arithmetic of two ranks, with collectives of one process.
    monkeypatch.setattr("examples.vttwins.distributed.world_size", lambda: 2)
    monkeypatch.setattr("examples.vttwins.distributed.sum_over_ranks", lambda x: x)
    monkeypatch.setattr("examples.vttwins.distributed.gather", lambda x: x)
    torch.manual_seed(0)
    plain = use_cross_rank_batch_norm(VideoTextModel(vocabulary_size=9, embedding_dim=8))
    repeated = copy.deepcopy(plain)
    repeated.checkpointing = True
    (_, expected), (_, found) = (gradients(m) for m in (plain, repeated))
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), repeated.buffers(), strict=True))


def test_checkpointing_keeps_fewer_activations() -> None:
    torch.manual_seed(0)
    model = VideoTextModel(vocabulary_size=9, embedding_dim=8)
    kept: dict[bool, int] = {}
    for model.checkpointing in (False, True):
        tensors: dict[int, int] = {}

        def note(x: Tensor, tensors: dict[int, int] = tensors) -> Tensor:
            tensors[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            result = model.encode_video(batch()[0].flatten(0, 1))
        kept[model.checkpointing] = sum(tensors.values())
        del result
    assert kept[True] < kept[False] / 4


def test_bfloat16_keeps_weights_loss_and_direction_of_the_gradient() -> None:
    torch.manual_seed(0)
    model = VideoTextModel(vocabulary_size=9, embedding_dim=8)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm3d)):
        norm.eval()  # over so few clips, BatchNorm's own statistics magnify any rounding
    other = copy.deepcopy(model)
    (value, expected), (again, found) = gradients(model), gradients(other, bf16=True)
    assert again.dtype == torch.float32 and all(p.dtype == torch.float32 for p in found)
    assert again == pytest.approx(float(value), rel=0.02)
    a, b = (torch.cat([g.flatten() for g in grads]) for grads in (expected, found))
    assert torch.isfinite(b).all()
    assert F.cosine_similarity(a, b, dim=0) > 0.98
    assert b.norm() == pytest.approx(float(a.norm()), rel=0.05)


def test_choices_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="compile and checkpointing"):
        config.preset("demo", compile=True, checkpointing=True)
    with pytest.raises(ValueError, match="must be even, got size 33"):
        config.preset("demo", front_end="space_to_depth", size=33)
