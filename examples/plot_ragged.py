"""
A batch of sequences of different lengths
=========================================

Sequences are padded to one tensor, and the loss is told their lengths. What lies beyond a length is
never read, be it NaN, and gets a gradient of exactly 0: the losses are those of single sequences.

    python -m examples.plot_ragged

The sequences are utterances of /ae/, from the set JapaneseVowels in the wheel of aeon.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch.nn.utils.rnn import pad_sequence

from examples import ucr
from softdtw_kernels import SoftDTWLoss

loss = SoftDTWLoss(gamma=0.1, reduction="none")

# %%
# The padding is NaN here, to show that nothing reads it; usually it is 0.


def main(output: Path = Path("build/plot_ragged.png")) -> list[str]:
    utterances = ucr.load("JapaneseVowels")[0]
    xs, ys = utterances[:8], utterances[8:16]
    xl, yl = (torch.tensor([len(s) for s in side]) for side in (xs, ys))
    x = pad_sequence(xs, batch_first=True, padding_value=float("nan")).requires_grad_()
    y = pad_sequence(ys, batch_first=True, padding_value=float("nan"))
    values = loss(x, y, xl, yl)
    (gradient,) = torch.autograd.grad(values.sum(), x)
    single = torch.stack([loss(a, b) for a, b in zip(xs, ys, strict=True)])

    beyond = torch.arange(x.shape[1]) >= xl[:, None]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), sharey=True)
    left.imshow(x.detach()[..., 0], aspect="auto", cmap="cividis")
    left.set(title="First coefficient; the padding is NaN", ylabel="item", xlabel="frame")
    image = right.imshow(gradient.norm(dim=-1), aspect="auto", cmap="cividis")
    right.set(title="Size of the gradient; 0 in the padding", xlabel="frame")
    figure.colorbar(image, ax=right, label="norm of a frame")
    for ax in (left, right):
        ax.set_facecolor("0.85")
        ends, rows = (xl - 0.5).numpy(), [k - 0.5 for k in range(len(xs) + 1)]
        ax.stairs(ends, rows, orientation="horizontal", baseline=None, color="tab:red", linewidth=2)
    figure.tight_layout()
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=120)
    return [
        f"lengths of x: {xl.tolist()}",
        f"largest difference from single pairs: {(values - single).abs().max():.1e}",
        f"largest gradient in the padding: {gradient[beyond].abs().max():g}",
    ]


if __name__ == "__main__":
    print("\n".join(main()))
