"""The model with a quarter of the channels of its Inception blocks: every layer is there, and
checkpoints are a fraction as large. For tests of runs, which are the same for all widths.

    python narrow.py OPTIONS

is the train script with this model in float64, for comparisons that rounding must not blur.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.vttwins import model, train

PART = max(1, model.INCEPTION["mixed_3b"][0] // 16)  # 4; of blocks that are narrow already, 1
BLOCKS = {
    name: (b0 // PART, (b1[0] // PART, b1[1] // PART), (b2[0] // PART, b2[1] // PART), b3 // PART)
    for name, (b0, b1, b2, b3) in model.INCEPTION.items()
}

if __name__ == "__main__":
    model.INCEPTION = BLOCKS
    torch.set_default_dtype(torch.float64)
    train.main()
