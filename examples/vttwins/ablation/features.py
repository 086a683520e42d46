"""Train two small encoders in the feature world with one row's loss, and measure them.

Requirements: torch, NumPy, softdtw_kernels.

Two MLPs, Adam with a cosine schedule, the batch of videos drawn anew at every step. Rows of the
same seed share the world, the first weights and every batch: their differences are paired.
Temporal data augmentation is off, as in the released code.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.vttwins import metrics
from examples.vttwins.ablation.rows import Row
from examples.vttwins.ablation.world import Source, World
from examples.vttwins.loss import SequenceLoss


@dataclass(frozen=True)
class FeatureSettings:
    """How a run is trained and measured; the row and the seed come beside it."""

    steps: int = 400
    batch: int = 24
    learning_rate: float = 1e-3
    hidden: int = 128
    embedding: int = 32
    direction: str = "t2v"
    retrieval_pairs: int = 200
    segments_per_step: int = 10
    world: World = field(default_factory=World)

    def described(self) -> dict[str, Any]:
        """As plain data, without the seed, for the result's file."""
        plain = asdict(self)
        plain["world"].pop("seed")
        return plain


class Encoders(nn.Module):
    """A clip encoder and a caption encoder into a common space, not normalized."""

    def __init__(self, features: int, hidden: int, embedding: int) -> None:
        super().__init__()
        self.video, self.text = (
            nn.Sequential(
                nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
                nn.Linear(hidden, embedding),
            )
            for _ in range(2)
        )  # fmt: skip


def build_loss(row: Row, settings: FeatureSettings) -> SequenceLoss:
    return SequenceLoss(direction=settings.direction, **row.loss())


def train(row: Row, seed: int, settings: FeatureSettings) -> tuple[Encoders, Source]:
    """The trained encoders and the source of their world."""
    source = Source(World(**{**asdict(settings.world), "seed": seed}))
    torch.manual_seed(seed)
    model = Encoders(source.world.features, settings.hidden, settings.embedding)
    loss = build_loss(row, settings)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    rng = np.random.default_rng([seed, 1])
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            share = step / settings.steps
            group["lr"] = settings.learning_rate * 0.5 * (1 + math.cos(math.pi * share))
        batch = source.videos(settings.batch, rng)
        value = loss(model.video(batch.video), model.text(batch.text))
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
    return model.eval(), source


@torch.no_grad()
def measure(
    model: Encoders, source: Source, seed: int, settings: FeatureSettings
) -> dict[str, float]:
    """What the table shows, on clips and captions that were not trained on.

    R@10 of the retrieval of a clip by its caption among ``retrieval_pairs``, by cosine, in percent;
    CTR, the accuracy of the best of the task's steps for a single clip, in percent; probe, the
    accuracy of a linear classifier of the step over the encoder's hidden features, in percent; mean
    and standard deviation of delta = -cosine over all pairs; the effective rank of the clips.
    """
    rng = np.random.default_rng([seed, 2])
    clips, captions = source.pairs(settings.retrieval_pairs, rng)
    v = F.normalize(model.video(clips), dim=-1).double()
    t = F.normalize(model.text(captions), dim=-1).double()
    delta = -t @ v.T
    clips, names, task, step = source.segments(settings.segments_per_step, rng)
    found = metrics.trimmed_step_accuracy(model.video(clips), model.text(names), task, step)
    return {
        "R@10": metrics.retrieval_metrics(-delta)["R@10"],
        "CTR": found["mean"],
        "probe": probe_accuracy(model, source, rng, settings),
        "delta_mean": delta.mean().item(),
        "delta_sd": delta.std().item(),
        "effective_rank": effective_rank(v),
    }


def probe_accuracy(
    model: Encoders, source: Source, rng: np.random.Generator, settings: FeatureSettings
) -> float:
    """Accuracy in percent, over all steps of all tasks, of least squares on frozen features.

    As in the paper's probe, the features are those before the last layer.
    """
    scores, labels = [], []
    for _ in range(2):  # training clips, test clips
        clips, _, task, step = source.segments(settings.segments_per_step, rng)
        hidden = model.video[:-1](clips).double()
        scores.append(torch.cat((hidden, torch.ones(len(hidden), 1)), 1))
        labels.append(task * source.world.steps_per_task + step)
    a, one_hot = scores[0], F.one_hot(labels[0]).double()
    ridge = 1e-3 * a.square().sum(1).mean() * torch.eye(a.shape[1], dtype=a.dtype)
    weights = torch.linalg.solve(a.T @ a + ridge, a.T @ one_hot)
    return 100 * ((scores[1] @ weights).argmax(1) == labels[1]).double().mean().item()


def effective_rank(embeddings: Tensor) -> float:
    """exp of the entropy of the normalized eigenvalues of the covariance of (N, D) embeddings."""
    values = torch.linalg.svdvals(embeddings - embeddings.mean(0)).square()
    share = values / values.sum()
    return torch.special.entr(share).sum().exp().item()


def run(row: Row, seed: int, settings: FeatureSettings) -> dict[str, float]:
    """Train and measure."""
    model, source = train(row, seed, settings)
    return measure(model, source, seed, settings)
