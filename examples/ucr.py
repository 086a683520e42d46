"""Series of the UCR and UEA archives that the wheel of aeon holds.

Source: Dau et al., "The UCR time series archive", IEEE/CAA Journal of Automatica Sinica 2019.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch
from torch import Tensor

from examples.japanese_vowels.data import find_wheel

FOLDER = Path("build/downloads")  # of the wheel
MEMBER = "aeon/datasets/data/{name}/{name}_{part}.ts"


def load(name: str, part: str = "TRAIN", folder: Path = FOLDER) -> tuple[list[Tensor], list[str]]:
    """The series, each (N_k, D) in float32, and the name of the class of each."""
    with zipfile.ZipFile(find_wheel(folder)) as wheel:
        lines = wheel.read(MEMBER.format(name=name, part=part)).decode().splitlines()
    series, labels = [], []
    for line in filter(None, lines[lines.index("@data") + 1 :]):
        *dimensions, label = line.split(":")
        values = [[float(value) for value in dimension.split(",")] for dimension in dimensions]
        series.append(torch.tensor(values).T.contiguous())
        labels.append(label.strip())
    return series, labels
