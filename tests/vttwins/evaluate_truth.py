"""The command line of evaluate.py with the model that knows the truth, for test_vtt_benchmarks.py.

    python evaluate_truth.py LOG ARGUMENTS...

Writes the video files that this process opens to LOG.<rank>.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import color_world

from examples.vttwins import evaluate, weights
from examples.vttwins.benchmarks import cache, extraction

OPENED: list[str] = []


class Reader(extraction.VideoReader):
    def __init__(self, path: Path) -> None:
        OPENED.append(Path(path).name)
        super().__init__(path)


if __name__ == "__main__":
    torch.set_num_threads(1)
    # Stand-ins of other types, on purpose.
    extraction.VideoReader = Reader
    cache.ITEMS_OF_A_PART = 2
    weights.load_model = lambda path: color_world.Truth()
    evaluate.main(sys.argv[2:])
    Path(f"{sys.argv[1]}.{os.environ['RANK']}").write_text("\n".join(OPENED), encoding="utf-8")
