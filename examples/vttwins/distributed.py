"""Several processes: start-up, gathering with gradient, BatchNorm over all ranks.

Requirements: torch with torch.distributed; gloo on CPUs, NCCL on GPUs.

The rule everything here follows: the gradient on W ranks is the gradient of one process on the
whole batch. Each rank's loss is the mean over its own rows; DistributedDataParallel averages over
ranks; so the gradient of a gathered tensor has to be the SUM over ranks of the slice that came from
here.

In float32 they differ more than expected: BatchNorm over the clips of a new network magnifies
rounding: on a batch of the demo the gradient is 4e-2 from that of float64, whose norm is 164.48;
the norm is 164.26, with the batch in reverse order 164.32, with the sums of CrossRankBatchNorm3d
164.29. In float64 these agree to 1e-12, and with BatchNorm in evaluation mode float32 does to 2e-5.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

# How long a rank waits for the others. Rank 0 evaluates and writes alone, which may take a while; a
# rank that has died is noticed at once, by gloo or by torchrun.
PATIENCE = timedelta(hours=1)


@dataclass(frozen=True)
class Place:
    """Where this process stands: its rank, the number of ranks, and its device."""

    rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def first(self) -> bool:
        return self.rank == 0


def device_of(name: str | None = None) -> torch.device:
    """The device of that name, on a GPU that of this process.

    Args:
        name: "cpu", "cuda" or None, which takes a GPU if there is one.

    Raises:
        SystemExit: a sentence about a name that is none, or about a GPU that is not there.
    """
    kind = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(kind)
    except RuntimeError:  # torch's message lists twenty kinds
        where = None
    if where is None or where.type not in ("cpu", "cuda"):
        raise SystemExit(f"--device must be cpu or cuda, got {kind!r}")
    if where.type == "cuda":
        index = int(os.environ.get("LOCAL_RANK", "0")) if where.index is None else where.index
        where = torch.device("cuda", index)
        if index >= torch.cuda.device_count():
            raise SystemExit(f"no {where}: there are {torch.cuda.device_count()} CUDA devices")
    return where


def start(device: str | None = None) -> Place:
    """Join the processes that torchrun started, or stand alone.

    Args:
        device: as that of ``device_of``.
    """
    where = device_of(device)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return Place(device=where)
    dist.init_process_group("nccl" if where.type == "cuda" else "gloo", timeout=PATIENCE)
    return Place(dist.get_rank(), dist.get_world_size(), where)


def stop() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def max_over_ranks(value: float, device: torch.device) -> float:
    """The largest of the ranks' values: decisions, to stop for instance, must be common ones."""
    if world_size() == 1:
        return value
    number = torch.tensor(float(value), device=device)
    dist.all_reduce(number, op=dist.ReduceOp.MAX)
    return float(number)


@contextmanager
def agreed() -> Iterator[None]:
    """A block that every rank leaves with an error if one does; each must enter it.

    Raises:
        SystemExit: with the message of a ValueError or OSError of the block, which one rank prints.
    """
    problem: str | None = None
    cause: BaseException | None = None
    try:
        yield
    except SystemExit as error:
        problem, cause = str(error.code), error
    except (ValueError, OSError) as error:
        problem, cause = f"{type(error).__name__}: {error}", error
    problems: list[str | None] = [problem]
    if world_size() > 1:
        problems = [None] * world_size()
        dist.all_gather_object(problems, problem)
    if any(found is not None for found in problems):
        rank = dist.get_rank() if world_size() > 1 else 0
        speaks = problem is not None and problems.index(problem) == rank
        raise SystemExit(problem if speaks else 1) from cause


def mean_over_ranks(value: Tensor) -> Tensor:
    """Mean of a detached value over the ranks, for logs."""
    value = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(value)
        value /= world_size()
    return value


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        rows = grad.shape[0] // dist.get_world_size()
        return grad[dist.get_rank() * rows :][:rows]


def gather(x: Tensor) -> Tensor:
    """Rows of all ranks, (B, *) -> (W B, *), in the order of ranks and with gradient.

    Every rank must hold the same number of rows. The gradient is summed over the ranks.
    """
    return x if world_size() == 1 else _Gather.apply(x.contiguous())


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad


def sum_over_ranks(x: Tensor) -> Tensor:
    """Sum over the ranks; the gradient too is summed, as all ranks use the result."""
    return x if world_size() == 1 else _SumOverRanks.apply(x)


class CrossRankBatchNorm3d(nn.BatchNorm3d):
    """BatchNorm3d whose training statistics are those of the batches of all ranks together.

    Same parameters and names as nn.BatchNorm3d, so checkpoints are shared. Unlike SyncBatchNorm it
    runs on the CPU. Two all-reduces of C numbers each way: the mean first, then squared deviations,
    since E[x^2] - E[x]^2 loses the variance where the mean is large.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(x)
        # Statistics in float32 at least: autocast hands over bfloat16 activations.
        y = x if x.dtype == torch.float64 else x.float()
        shape = (1, -1, 1, 1, 1)
        total = torch.cat((y.sum((0, 2, 3, 4)), y.new_tensor([y.numel() / y.shape[1]])))
        total = sum_over_ranks(total)
        count = total[-1].detach()
        mean = total[:-1] / count
        centered = y - mean.view(shape)
        variance = sum_over_ranks(centered.square().sum((0, 2, 3, 4))) / count
        if self.track_running_stats and self.running_mean is not None:
            assert self.running_var is not None
            with torch.no_grad():
                if self.num_batches_tracked is not None:  # None: the same batch again
                    self.num_batches_tracked += 1
                momentum = self.momentum
                if momentum is None:  # the mean of all batches so far
                    assert self.num_batches_tracked is not None
                    momentum = 1 / float(self.num_batches_tracked)
                self.running_mean.lerp_(mean.to(self.running_mean), momentum)
                unbiased = variance * (count / (count - 1))
                self.running_var.lerp_(unbiased.to(self.running_var), momentum)
        normal = centered * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            normal = normal * self.weight.view(shape) + self.bias.view(shape)
        return normal.to(x.dtype)


def use_cross_rank_batch_norm(model: nn.Module) -> nn.Module:
    """Turn every BatchNorm3d of a model into CrossRankBatchNorm3d, in place."""
    for module in model.modules():
        if type(module) is nn.BatchNorm3d:
            module.__class__ = CrossRankBatchNorm3d
    return model
