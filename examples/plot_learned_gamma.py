"""
Gamma and the cost of warping, learned
======================================

Gamma and ``warp_cost`` may be tensors with a gradient. Here they are learned so that a gesture is
nearer to those of its own class, together with the scale of the divergence. From a gamma that is
too large the loss falls to less than a third, in seconds and without a grid of settings.

    python -m examples.plot_learned_gamma

The gestures are those of the UCR set GunPoint, from the wheel of aeon.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from examples import ucr
from softdtw_kernels import soft_dtw_divergence

STEPS, STRIDE = 40, 6

# %%
# The loss is that of neighbourhood components analysis: the log-probability that a neighbour,
# drawn with weights exp(-divergence / scale), is of the same class. The settings are positive, so
# their logarithms are learned.


def main(output: Path = Path("build/plot_learned_gamma.png")) -> list[str]:
    sets = {}
    for part in ("TRAIN", "TEST"):
        series, labels = ucr.load("GunPoint", part)
        sets[part] = torch.stack(series)[:, ::STRIDE], torch.tensor([int(k) for k in labels])
    (x, kinds), (new, new_kinds) = sets["TRAIN"], sets["TEST"]
    same = (kinds[:, None] == kinds) & ~torch.eye(len(x), dtype=torch.bool)
    logs = torch.tensor([10.0, 0.01, 1.0]).log().requires_grad_()  # gamma, warp_cost, scale
    optimizer = torch.optim.Adam([logs], lr=0.3)

    def correct(settings: Tensor) -> float:
        gamma, warp, _ = settings
        apart = soft_dtw_divergence(new, x, gamma=gamma, warp_cost=warp, pairwise=True)
        return float((kinds[apart.argmin(1)] == new_kinds).float().mean())

    history, losses = [], []
    for _ in range(STEPS):
        gamma, warp, scale = logs.exp()
        apart = soft_dtw_divergence(x, x, gamma=gamma, warp_cost=warp, pairwise=True)
        near = (-apart / scale).masked_fill(torch.eye(len(x), dtype=torch.bool), -torch.inf)
        own = near.masked_fill(~same, -torch.inf)
        loss = (near.logsumexp(1) - own.logsumexp(1)).mean()
        history.append(logs.detach().exp())
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    styles = ("-", "gamma"), ("--", "warp_cost"), (":", "scale")
    for values, (style, name) in zip(torch.stack(history).T, styles, strict=True):
        left.semilogy(values, style, label=name, linewidth=2)
    left.set(title="The settings", xlabel="step")
    left.legend(frameon=False)
    right.plot(losses, color="black")
    right.set(title="The loss", xlabel="step", ylabel="-log probability of the class")
    figure.tight_layout()
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=120)
    return [
        f"step {k:2}: gamma {history[k][0]:.4f}, warp_cost {history[k][1]:.4f}, "
        f"loss {losses[k]:.3f}; nearest neighbour right {correct(history[k]):.1%} of the test set"
        for k in (0, STEPS - 1)
    ]


if __name__ == "__main__":
    print("\n".join(main()))
