"""Who is speaking? Soft-DTW barycenters of real recordings against resampled Euclidean means.

    make example-japanese-vowels
    python -m examples.japanese_vowels --output build/japanese_vowels

Chooses gamma by cross-validation on the 270 training utterances, averages each speaker's
utterances, names the speaker of the 370 test utterances by the nearest average, prints the table
and writes the pictures.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from tqdm import tqdm

from . import model
from .data import COEFFICIENTS, SPEAKERS, load
from .pictures import write_pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("build/japanese_vowels"))
    parser.add_argument("--cache", type=Path, default=Path("build/downloads"))
    parser.add_argument("--threads", type=int, default=1, help="one is enough for so short series")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    started = time.perf_counter()
    train, test = load(arguments.cache)
    frames = [len(sequence) for sequence in train.frames + test.frames]
    print(
        f"{len(train)} training and {len(test)} test utterances of {SPEAKERS} speakers, "
        f"{min(frames)} to {max(frames)} frames of {COEFFICIENTS} coefficients"
    )

    length = model.median_length(train)
    averages = SPEAKERS * (model.FOLDS * len(model.GAMMAS) + 1)
    with tqdm(total=averages, desc="barycenters", unit="barycenter") as bar:
        gamma, cross_validated = model.choose_gamma(train, length, bar.update)
        barycenters = model.soft_dtw_means(train, length, gamma, bar.update)
    means = model.euclidean_means(train, length)

    print(f"\nTraining utterances, {model.FOLDS}-fold cross-validation")
    for candidate, accuracy in cross_validated.items():
        chosen = "  <- chosen" if candidate == gamma else ""
        print(f"  gamma = {candidate:<5g}  accuracy {accuracy:6.1%}{chosen}")

    euclidean = model.euclidean_predictions(means, test.frames) == test.speakers
    soft = model.soft_dtw_predictions(barycenters, test.frames, gamma) == test.speakers
    print(f"\n{'Test utterances, speaker':<38}" + "".join(f"{k + 1:>5}" for k in range(SPEAKERS)))
    print_row("spoken", torch.ones_like(soft), test.speakers)
    print_row("right by the resampled Euclidean mean", euclidean, test.speakers)
    print_row(f"right by the soft-DTW barycenter ({gamma:g})", soft, test.speakers)
    print(
        f"\nAccuracy {soft.float().mean():.1%} with soft-DTW barycenters, "
        f"{euclidean.float().mean():.1%} with resampled Euclidean means"
    )

    for path in write_pictures(arguments.output, train, gamma, barycenters, means):
        print(f"Wrote {path}")
    print(f"{time.perf_counter() - started:.0f} s in all")


def print_row(name: str, counted: torch.Tensor, speakers: torch.Tensor) -> None:
    """A line with how many utterances of each speaker are counted, and of all."""
    counts = torch.bincount(speakers[counted], minlength=SPEAKERS).tolist()
    print(f"{name:<38}" + "".join(f"{count:>5}" for count in counts) + f"{sum(counts):>7}")


if __name__ == "__main__":
    main()
