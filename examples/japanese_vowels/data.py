"""The JapaneseVowels recordings, read from the file that the package aeon ships.

Nine male speakers say /ae/; each utterance is a series of 7 to 29 frames of 12 cepstral
coefficients. Source: M. Kudo, J. Toyama and M. Shimbo, "Multidimensional curve classification using
passing-through regions", Pattern Recognition Letters 20, 1999 (UCI Machine Learning Repository).
aeon is downloaded, never installed or imported: only one file of its wheel is read.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
MEMBER = "aeon/datasets/data/JapaneseVowels/JapaneseVowels_{part}.ts"
SIZES = {"TRAIN": 270, "TEST": 370}
SPEAKERS = 9
COEFFICIENTS = 12


@dataclass(frozen=True)
class Utterances:
    """Utterances of varying length and who spoke them."""

    frames: list[Tensor]  # each (N_k, 12), float32
    speakers: Tensor  # (S,) int64, from 0

    def __len__(self) -> int:
        return len(self.frames)

    def select(self, indices: Iterable[int]) -> Utterances:
        chosen = list(indices)
        return Utterances([self.frames[k] for k in chosen], self.speakers[chosen])

    def of_speaker(self, speaker: int) -> list[Tensor]:
        return [self.frames[k] for k in torch.nonzero(self.speakers == speaker).flatten().tolist()]


def padded(frames: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Sequences as one tensor (S, N, D), and their lengths (S,)."""
    lengths = torch.tensor([len(sequence) for sequence in frames])
    return pad_sequence(list(frames), batch_first=True), lengths


def load(cache: Path) -> tuple[Utterances, Utterances]:
    """The training and the test utterances; downloads aeon's wheel into `cache` the first time."""
    with zipfile.ZipFile(find_wheel(cache)) as wheel:
        texts = {part: wheel.read(MEMBER.format(part=part)).decode() for part in SIZES}
    train, test = (parse(texts[part]) for part in SIZES)
    for part, utterances in zip(SIZES, (train, test), strict=True):
        if len(utterances) != SIZES[part] or set(utterances.speakers.tolist()) != set(
            range(SPEAKERS)
        ):
            raise ValueError(
                f"the {part} part holds {len(utterances)} utterances of speakers "
                f"{sorted(set(utterances.speakers.tolist()))}, expected {SIZES[part]} of 0 to 8"
            )
    return train, test


def find_wheel(cache: Path) -> Path:
    """The wheel in `cache`, downloaded with pip (the pinned version) if it is not there yet."""
    if not list(cache.glob("aeon-*.whl")):
        cache.mkdir(parents=True, exist_ok=True)
        print(f"Downloading the recordings (aeon's wheel) into {cache}", flush=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check"]
        command += ["--no-deps", "--only-binary=:all:", "-c", str(CONSTRAINTS)]
        subprocess.run([*command, "--dest", str(cache), "aeon"], check=True)
    return max(cache.glob("aeon-*.whl"))


def parse(text: str) -> Utterances:
    """Read the sktime/aeon `.ts` text format, as far as multivariate class-labeled series need it.

    After the header, a line is an utterance: its dimensions separated by colons, each a list of
    values separated by commas, and the class label, from 1, at the end.

    >>> parse("@problemName Tiny\\n@data\\n1,2,3:4,5,6:1\\n7,8:9,10:2\\n").frames[1]
    tensor([[ 7.,  9.],
            [ 8., 10.]])
    """
    lines = [line.strip() for line in text.splitlines()]
    frames, speakers = [], []
    for line in lines[lines.index("@data") + 1 :]:
        if not line:
            continue
        *dimensions, label = line.split(":")
        values = [[float(value) for value in dimension.split(",")] for dimension in dimensions]
        frames.append(torch.tensor(values).T.contiguous())
        speakers.append(int(label) - 1)
    return Utterances(frames, torch.tensor(speakers))
