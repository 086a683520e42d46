"""One optimizer step: the learning rate, the gradient, and what happens if it is not finite.

Requirements: torch.

A step whose loss or gradient is not finite on any rank is skipped on all of them: the weights, the
optimizer's moments and the statistics of BatchNorm stay as they were. Several such steps in a row
are no accident, and end the run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from examples.vttwins import distributed
from examples.vttwins.config import Settings
from examples.vttwins.distributed import Place


class NotFinite(ArithmeticError):
    """Too many steps in a row without a finite gradient."""


def learning_rate(step: int, steps: int, settings: Settings) -> float:
    """Linear warm-up from ``warmup_from``, then cosine annealing to 0 at the last step."""
    warmup = settings.warmup_of(steps)
    if step < warmup:
        share = step / warmup
        return settings.warmup_from + share * (settings.learning_rate - settings.warmup_from)
    share = (step - warmup) / max(steps - warmup, 1)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


class Stepper:
    """Takes optimizer steps, skips the bad ones and counts them.

    Args:
        model: whose parameters are trained.
        network: the model as it is called: itself, compiled, or in DistributedDataParallel.
        optimizer: its parameter groups may have a "scale", by which the learning rate is multiplied
            (default 1).
        batch_loss: (network, batch, number of the batch) -> this rank's loss.
        settings: clip_norm, bf16, bad_steps.
        place: of this process.
    """

    def __init__(
        self,
        model: nn.Module,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        batch_loss: Callable[[nn.Module, dict[str, Any], int], Tensor],
        settings: Settings,
        place: Place,
    ) -> None:
        self.model, self.network, self.optimizer = model, network, optimizer
        self.batch_loss, self.settings, self.place = batch_loss, settings, place
        self.bad = self.bad_in_a_row = 0
        # Whether weights and moments are ahead of the owner's count of steps, who clears it.
        self.updating = False
        self._statistics: list[Tensor] = []

    def __call__(self, step: int, rate: float, batches: list[dict[str, Any]]) -> dict[str, float]:
        """One optimizer step over the batches; returns what to log.

        Raises:
            NotFinite: ``bad_steps`` steps in a row, this the last of them, had to be skipped.
        """
        settings, place = self.settings, self.place
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("scale", 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        self._statistics = [buffer.clone() for buffer in self.model.buffers()]
        total = torch.zeros((), device=place.device)
        for k, batch in enumerate(batches):
            last = k == len(batches) - 1
            alone = isinstance(self.network, DistributedDataParallel) and not last
            # Only DistributedDataParallel has no_sync, which `alone` tells and mypy cannot see.
            with self.network.no_sync() if alone else nullcontext():  # type: ignore[operator]
                with torch.autocast(place.device.type, torch.bfloat16, enabled=settings.bf16):
                    number = step * len(batches) + k
                    value = self.batch_loss(self.network, batch, number) / len(batches)
                value.backward()
            total += value.detach()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm or math.inf)
        # One reduction for all: it also makes the decision below the same on every rank.
        skipped = total.new_tensor(float(sum(len(b["skipped"]) for b in batches)))
        finite = (total.isfinite() & norm.isfinite()).to(total.dtype)
        means = distributed.mean_over_ranks(torch.stack((total, finite, skipped)))
        loss, share_finite, mean_skipped = means.tolist()
        if share_finite == 1:
            self.updating = True
            self.optimizer.step()
            self.bad_in_a_row = 0
        else:
            self.undo()
            self.bad += 1
            self.bad_in_a_row += 1
        self._statistics = []
        if self.bad_in_a_row >= settings.bad_steps:
            raise self.not_finite(step)
        return {
            "loss": loss, "gradient_norm": float(norm), "learning_rate": rate,
            "skipped": round(mean_skipped * place.world),
        }  # fmt: skip

    def not_finite(self, step: int) -> NotFinite:
        """What there is to say when ``step`` was bad, as those before it."""
        return NotFinite(
            f"the loss or the gradient was not finite in {self.bad_in_a_row} steps in a row, the "
            f"last of them step {step}. They were skipped. Try a lower --learning-rate, a longer "
            "--warmup, or --clip-norm"
        )

    def undo(self) -> None:
        """Put back the buffers as they were before the step under way, if there is one."""
        with torch.no_grad():
            for buffer, before in zip(self.model.buffers(), self._statistics, strict=False):
                buffer.copy_(before)
        self._statistics = []
