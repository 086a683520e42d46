"""The train script in float64, for comparisons that rounding must not blur."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.vttwins import train

torch.set_default_dtype(torch.float64)
train.main()
