"""
Forecasts of shape, and of time
===============================

A forecast of blood pressure is trained with the squared error (MSE), soft-DTW and DILATE. MSE has
the best squared error and time; the others have the better shape by DTW, which costs them time.

    python -m examples.plot_forecast
"""

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from examples.plot_kmeans import recording
from softdtw_kernels import dilate_loss, soft_dtw, soft_dtw_alignment

STEP, PAST, FUTURE = 6, 8, 40  # samples a frame; frames
SEEDS, UPDATES, BATCH = 3, 300, 64
NAMES = "MSE", "soft-DTW", "DILATE"


def loss_of(name: str, x: Tensor, y: Tensor) -> Tensor:
    if name == "MSE":
        return nn.functional.mse_loss(x, y)
    loss = dilate_loss if name == "DILATE" else soft_dtw
    return loss(x, y, gamma=0.01, bandwidth=5, reduction="mean") / FUTURE


# %%
# The first 70 % of the recording train a network of one hidden layer; the last 25 % judge it.


def forecast(name: str, windows: Tensor, new: Tensor, seed: int) -> Tensor:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(PAST, 64), nn.Tanh(), nn.Linear(64, FUTURE))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(UPDATES):
        past, future = windows[torch.randint(len(windows), (BATCH,))].split([PAST, FUTURE], 1)
        optimizer.zero_grad()
        loss_of(name, model(past)[..., None], future[..., None]).backward()
        optimizer.step()
    return model(new[:, :PAST]).detach()


# %%
# Shape is hard DTW, time how far its path is from the diagonal. Without a band MSE had both better.


def judge(values: Tensor, truth: Tensor) -> Tensor:
    aligned = soft_dtw_alignment(values[..., None], truth[..., None], gamma=0.0)
    apart = (torch.arange(FUTURE)[:, None] - torch.arange(FUTURE)).abs()
    off = (aligned.expected * apart).sum((1, 2)) / aligned.expected.sum((1, 2))
    return torch.stack([(values - truth).square().mean(), aligned.value.mean(), off.mean()])


def main(output: Path = Path("build/plot_forecast.png")) -> None:
    pressure = recording()[::STEP]
    cut = int(0.7 * len(pressure))
    pressure = (pressure - pressure[:cut].mean()) / pressure[:cut].std()
    windows = pressure.unfold(0, PAST + FUTURE, 1)
    old, new = windows[: cut - PAST - FUTURE], windows[int(0.75 * len(pressure)) :]
    figure, ax = plt.subplots(figsize=(9, 4.2))
    ax.plot(range(-PAST, FUTURE), new[60], color="0.7", linewidth=5, label="recording")
    for name, style in zip(NAMES, (":", "-", "--"), strict=True):
        found = [forecast(name, old, new, k) for k in range(SEEDS)]
        spread, mean = torch.std_mean(torch.stack([judge(f, new[:, PAST:]) for f in found]), 0)
        numbers = zip(("MSE", "DTW", "time"), mean, spread, strict=True)
        print(f"{name:8}", *(f"{what} {m:.2f} ± {s:.2f}" for what, m, s in numbers), sep="  ")
        ax.plot(range(FUTURE), found[0][60], style, lw=2, label=name)
    ax.set(xlabel="frame", ylabel="pressure, standardized")
    ax.legend(frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    main()
