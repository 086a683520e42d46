"""A world of features in which narrations are weakly aligned: the ablation in seconds, not days.

Requirements: NumPy, torch.

Tasks are ordered lists of steps; a step is a latent vector that shares the theme of its task. A
clip and a caption of the same step are two different fixed, random, nonlinear views of its latent,
with nuisance dimensions and noise. A training video shows some steps of its task in order. Its
narration is hard to use: all captions come up to two places early or late, neighbors are swapped
with probability 1/2, and 6 in 10 are chit-chat. There is no end to training data. Test pairs are
exact.

The noise was set on two other seeds by the level of S2DTW alone, before any row was compared with
it: R@10 of 91 and 77 % at a noise of .3 and .5, so neither at the ceiling nor near chance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class World:
    """Parameters of the world; the same ones and the same seed make the same world."""

    tasks: int = 12
    steps_per_task: int = 10
    latent: int = 16
    seen: int = 40  # dimensions of a feature that depend on the latent
    nuisance: int = 8  # dimensions that do not
    noise: float = 0.4
    steps: int = 8  # in a training video
    shift: int = 2
    swap: float = 0.5
    chatter: float = 0.6
    chatter_kinds: int = 8
    seed: int = 0

    @property
    def features(self) -> int:
        return self.seen + self.nuisance


@dataclass(frozen=True)
class Batch:
    """Videos of ``n`` clips and captions: what a model sees, and what is true of it."""

    video: Tensor  # (B, n, features)
    text: Tensor  # (B, n, features)
    task: np.ndarray  # (B,)
    clip_step: np.ndarray  # (B, n), the step that is seen
    caption_step: np.ndarray  # (B, n), the step that is told; -1: chit-chat

    def matches(self) -> np.ndarray:
        """Which caption (rows) tells of which clip (columns): bool (B, n, n)."""
        return self.caption_step[:, :, None] == self.clip_step[:, None, :]


class Source:
    """Draws videos and test pairs of a world.

    The world's fixed parts come from its seed alone, the draws from ``generator``, so that two
    models can see the same videos in the same order.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        rng = np.random.default_rng([world.seed, 0])
        w = world
        theme = rng.standard_normal((w.tasks, 1, w.latent))
        own = rng.standard_normal((w.tasks, w.steps_per_task, w.latent))
        self.latents = (theme + own) / np.sqrt(2)
        self.chatter = rng.standard_normal((w.chatter_kinds, w.latent))
        self._views = {
            name: (
                rng.standard_normal((w.latent, 2 * w.seen)) / np.sqrt(w.latent),
                rng.standard_normal((2 * w.seen, w.seen)) / np.sqrt(2 * w.seen),
            )
            for name in ("clip", "caption")
        }

    def observe(self, latent: np.ndarray, kind: str, rng: np.random.Generator | None) -> Tensor:
        """Features (*, features) of latents (*, latent), of a "clip" or a "caption".

        ``rng`` None leaves noise and nuisance out.
        """
        first, second = self._views[kind]
        seen: np.ndarray = np.tanh(2 * latent @ first) @ second
        nuisance: np.ndarray = np.zeros((*latent.shape[:-1], self.world.nuisance))
        if rng is not None:
            seen += self.world.noise * rng.standard_normal(seen.shape)
            nuisance = rng.standard_normal(nuisance.shape)
        return torch.from_numpy(np.concatenate((seen, nuisance), -1).astype(np.float32))

    def videos(self, count: int, rng: np.random.Generator) -> Batch:
        """Weakly aligned videos."""
        w = self.world
        task = rng.integers(w.tasks, size=count)
        orders = rng.random((count, w.steps_per_task)).argsort(1)
        clip_step = np.sort(orders[:, : w.steps], 1)
        shift = rng.integers(-w.shift, w.shift + 1, size=(count, 1))
        place = np.clip(np.arange(w.steps) - shift, 0, w.steps - 1)
        told = np.take_along_axis(clip_step, place, 1)
        for i in range(w.steps - 1):
            swapped = rng.random(count) < w.swap
            told[swapped, i : i + 2] = told[swapped, i : i + 2][:, ::-1]
        chat = rng.random((count, w.steps)) < w.chatter
        kind = rng.integers(w.chatter_kinds, size=(count, w.steps))
        latent = np.where(chat[..., None], self.chatter[kind], self.latents[task[:, None], told])
        return Batch(
            self.observe(self.latents[task[:, None], clip_step], "clip", rng),
            self.observe(latent, "caption", rng),
            task,
            clip_step,
            np.where(chat, -1, told),
        )

    def pairs(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Clips and captions (count, features) that match one to one, for retrieval."""
        w = self.world
        latent = self.latents[
            rng.integers(w.tasks, size=count), rng.integers(w.steps_per_task, size=count)
        ]
        return self.observe(latent, "clip", rng), self.observe(latent, "caption", rng)

    def segments(
        self, repeats: int, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``repeats`` clips of every step, the name of its step (a caption without noise), its
        task and its step: (N, features), (N, features), (N,), (N,)."""
        w = self.world
        latent = np.tile(self.latents.reshape(-1, w.latent), (repeats, 1))
        task = torch.arange(w.tasks).repeat_interleave(w.steps_per_task).repeat(repeats)
        step = torch.arange(w.steps_per_task).repeat(w.tasks).repeat(repeats)
        return self.observe(latent, "clip", rng), self.observe(latent, "caption", None), task, step
