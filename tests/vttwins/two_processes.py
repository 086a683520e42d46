"""One of two processes of test_vtt_distributed.py: the gradients of its half of a batch, by
DDP.

    python two_processes.py RANK WORLD STORE FOLDER MODE...

With WORLD 1 it is the one process that the two are compared with.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.vttwins import train
from examples.vttwins.distributed import Place, use_cross_rank_batch_norm
from examples.vttwins.loss import SequenceLoss
from examples.vttwins.model import VideoTextModel

SEQUENCES, CLIPS, CAPTIONS = 4, 2, 3


def main() -> None:
    rank, world = int(sys.argv[1]), int(sys.argv[2])
    store, folder, *modes = sys.argv[3:]
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    for mode in modes:
        torch.save(gradients_in(mode, rank, world), f"{folder}/{mode}-{world}-{rank}.pt")
    if world > 1:
        dist.destroy_process_group()


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
