"""Nearest-barycenter classification, with soft-DTW and with the Euclidean distance."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from softdtw_kernels import soft_dtw, soft_dtw_barycenter

from .data import SPEAKERS, Utterances, padded

FOLDS = 5
STEPS = 30  # of the minimization of a barycenter
GAMMAS = (0.01, 0.1, 1.0, 10.0)


def resample(frames: Tensor, length: int) -> Tensor:
    """(N, D) as (length, D), by linear interpolation over time."""
    channels = frames.T[None]
    return F.interpolate(channels, size=length, mode="linear", align_corners=True)[0].T


def median_length(utterances: Utterances) -> int:
    return int(torch.tensor([len(sequence) for sequence in utterances.frames]).median())


def euclidean_means(utterances: Utterances, length: int) -> Tensor:
    """(9, length, D): per speaker, the mean of the resampled utterances."""
    members = [utterances.of_speaker(speaker) for speaker in range(SPEAKERS)]
    return torch.stack([torch.stack([resample(x, length) for x in m]).mean(0) for m in members])


def soft_dtw_means(
    utterances: Utterances, length: int, gamma: float, advance: Callable[[], object]
) -> Tensor:
    """(9, length, D): per speaker, the soft-DTW barycenter, started from the Euclidean mean."""
    means = []
    for speaker, start in enumerate(euclidean_means(utterances, length)):
        members = utterances.of_speaker(speaker)
        means.append(soft_dtw_barycenter(members, init=start, gamma=gamma, max_iter=STEPS))
        advance()
    return torch.stack(means)


def euclidean_predictions(means: Tensor, frames: Sequence[Tensor]) -> Tensor:
    """(S,): the speaker whose mean is nearest to the resampled utterance."""
    x = torch.stack([resample(sequence, means.shape[1]) for sequence in frames])
    return (x[:, None] - means).square().sum((2, 3)).argmin(1)


def soft_dtw_predictions(means: Tensor, frames: Sequence[Tensor], gamma: float) -> Tensor:
    """(S,): the speaker whose barycenter has the smallest soft-DTW value to the utterance."""
    x, lengths = padded(frames)
    y_lengths = torch.full((len(means),), means.shape[1])
    values = soft_dtw(
        x, means, gamma=gamma, x_lengths=lengths, y_lengths=y_lengths, pairwise=True
    )  # (S, 9)
    return values.argmin(1)


def choose_gamma(
    train: Utterances, length: int, advance: Callable[[], object]
) -> tuple[float, dict[float, float]]:
    """The gamma of highest cross-validated accuracy in training, the larger of equals, and all.

    The utterances of fold k are those whose index is k modulo the number of folds, so that each
    fold holds as many of each speaker.
    """
    accuracy = {}
    for gamma in GAMMAS:
        correct = 0
        for fold in range(FOLDS):
            kept = train.select(k for k in range(len(train)) if k % FOLDS != fold)
            held = train.select(range(fold, len(train), FOLDS))
            means = soft_dtw_means(kept, length, gamma, advance)
            predictions = soft_dtw_predictions(means, held.frames, gamma)
            correct += int((predictions == held.speakers).sum())
        accuracy[gamma] = correct / len(train)
    return max(accuracy, key=lambda gamma: (accuracy[gamma], gamma)), accuracy
