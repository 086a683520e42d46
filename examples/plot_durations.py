"""
How long each sound lasts
=========================

Every utterance is the diphthong /ae/: a, then a glide, then e, but nobody marked where one ends.
``forward_sum`` learns a model of three sounds from the order alone, and ``monotonic_alignment``
reads the durations from it.

    python -m examples.plot_durations

The utterances of nine speakers are those of the set JapaneseVowels in the wheel of aeon, which
says nothing about the sounds: their names are ours.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from examples import ucr
from examples.japanese_vowels.data import padded
from softdtw_kernels import forward_sum, monotonic_alignment

NAME = "JapaneseVowels"
SOUNDS = "a", "glide", "e"
COLORS = "#1f5fa8", "#bbbbbb", "#c2571a"

# %%
# Each sound is a Gaussian over the 12 coefficients of a frame. At the start its mean is that of a
# third of all utterances; the loss sums over all alignments, weighted by their probability.
# The durations are those of utterances that the model has not seen.


def fit(frames: Tensor, lengths: Tensor, steps: int = 100) -> tuple[Tensor, Tensor]:
    third = torch.arange(frames.shape[1]) * 3 // lengths[:, None]  # 3 and more in the padding
    means = torch.stack([frames[third == k].mean(0) for k in range(3)]).requires_grad_()
    spread = torch.stack([frames[third == k].std(0) for k in range(3)]).log().requires_grad_()
    optimizer = torch.optim.Adam([means, spread], lr=0.01)
    for _ in range(steps):
        value = forward_sum(scores(frames, means, spread), x_lengths=lengths).sum() / lengths.sum()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return means.detach(), spread.detach()


def scores(frames: Tensor, means: Tensor, spread: Tensor) -> Tensor:
    apart = (frames[..., None, :] - means) * (-spread).exp()
    return -(0.5 * apart.square() + spread).sum(-1)


def main(output: Path = Path("build/plot_durations.png")) -> Tensor:
    (x, xl), (new, lengths) = map(padded, (ucr.load(NAME)[0], ucr.load(NAME, "TEST")[0]))
    durations = monotonic_alignment(scores(new, *fit(x, xl)), x_lengths=lengths).sum(-2)

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4))
    order, begin = (100 * lengths + durations[:, 0]).argsort(), torch.zeros(len(lengths))
    for k, (name, color) in enumerate(zip(SOUNDS, COLORS, strict=True)):
        left.barh(range(len(order)), durations[order, k], 1.0, begin, color=color, label=name)
        begin = begin + durations[order, k]
    left.set(title=f"{len(order)} utterances, by their length", xlabel="frame", ylabel="utterance")
    left.legend(frameon=False, loc="lower right")
    one = int(lengths.argmax())
    frames = (new[one] - new[one].mean(0)) / new[one].std(0)
    right.imshow(frames.T, aspect="auto", cmap="Greys", origin="lower")
    for end in durations[one].cumsum(0)[:-1]:
        right.axvline(float(end) - 0.5, color=COLORS[2], linewidth=2.5)
    right.set(title="The longest one: where sounds end", xlabel="frame", ylabel="coefficient")
    figure.tight_layout()
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=120)
    return durations


if __name__ == "__main__":
    for name, lasts in zip(SOUNDS, main().T, strict=True):
        print(f"{name:5} lasts {lasts.mean():.1f} ± {lasts.std():.1f} frames")
