"""One of two processes of test_vtt_distributed.py: the gradients of its half of a batch, by
DDP.

    python two_processes.py FOLDER MODE...

Which of them it is, the variables say that torchrun sets. Without these it is the one process that
the two are compared with.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.vttwins import distributed, train
from examples.vttwins.distributed import Place, use_cross_rank_batch_norm
from examples.vttwins.loss import SequenceLoss
from examples.vttwins.model import VideoTextModel

SEQUENCES, CLIPS, CAPTIONS = 4, 2, 3


def main() -> None:
    folder, *modes = sys.argv[1:]
    torch.set_num_threads(1)
    place = distributed.start("cpu")
    for mode in modes:
        result = gradients_in(mode, place.rank, place.world)
        torch.save(result, f"{folder}/{mode}-{place.world}-{place.rank}.pt")
    distributed.stop()


def gradients_in(mode: str, rank: int, world: int) -> dict[str, object]:
    torch.manual_seed(0)
    model = VideoTextModel(vocabulary_size=12, embedding_dim=16, train_words=True).double()
    for name, value in model.named_buffers():  # statistics as after some training
        if name.endswith("running_mean"):
            value.normal_(0, 0.1)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
    video = torch.rand(SEQUENCES, CLIPS, 3, 4, 32, 32, dtype=torch.float64)
    words = torch.randint(0, 12, (SEQUENCES, CAPTIONS, 5))
    uniform = torch.rand(2, SEQUENCES, dtype=torch.float64)
    model.train(mode == "cross-rank")
    if mode == "cross-rank":
        use_cross_rank_batch_norm(model)
    network: torch.nn.Module = model
    if world > 1:
        network = DistributedDataParallel(model, broadcast_buffers=False)
    mine = slice(rank * SEQUENCES // world, (rank + 1) * SEQUENCES // world)
    loss = SequenceLoss(direction="symmetric")
    # tau is large, so that the augmentation does permute.
    value = train.batch_loss(
        network, loss, video[mine], words[mine], Place(rank, world), uniform, tau=5.0
    )
    value.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())
    return {"loss": value.detach(), "gradients": gradients, "buffers": buffers}


main()
