"""What steps and ends that differ from the plain ones cost on one thread of the CPU, value and
gradient, as ratios to the plain alignment:

    python -m benchmarks.patterns

All are called in turn, and the best process time counts.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from benchmarks.compare import cpu_name
from softdtw_kernels import soft_dtw_from_cost

SHAPES = ((256, 32, 32), (64, 256, 256), (8, 1024, 1024), (1, 2048, 2048))
PATTERNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "warp_cost": {"warp_cost": 0.5},
    'repeat "y"': {"repeat": "y"},
    "end y": {"open_end": "y"},
    "begin y, end y": {"open_begin": "y", "open_end": "y"},
    "the same at .3 each": {"open_begin": "y", "open_end": "y", "skip_cost": 0.3},
    "begin x, end y": {"open_begin": "x", "open_end": "y", "skip_cost": 0.3},
    "all ends": {"open_begin": "xy", "open_end": "xy", "skip_cost": 0.3},
    'begin y, end y, repeat "y"': {"open_begin": "y", "open_end": "y", "repeat": "y"},
}


def ratios(shape: tuple[int, int, int], dtype: torch.dtype, gamma: float, rounds: int) -> list[str]:
    """The plain alignment's nanoseconds a cell, and the others over it."""
    generator = torch.Generator().manual_seed(0)
    cost = torch.rand(shape, generator=generator, dtype=dtype).requires_grad_()
    best = dict.fromkeys(PATTERNS, float("inf"))
    for k in range(rounds + 1):
        for name, options in PATTERNS.items():
            start = time.process_time()
            value = soft_dtw_from_cost(cost, gamma=gamma, **options).sum()
            torch.autograd.grad(value, cost)
            if k > 0:  # the first call may compile
                best[name] = min(best[name], time.process_time() - start)
    plain = best.pop("plain")
    return [f"{1e9 * plain / cost.numel():.1f}", *(f"{t / plain:.2f}" for t in best.values())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print(f"{cpu_name()}, one thread, costs U[0, 1]\n")
    print("| costs | gamma | plain, ns a cell |", " | ".join(list(PATTERNS)[1:]), "|")
    print("|---" * 2 + "|---:" * len(PATTERNS) + "|")
    for shape in SHAPES:
        for dtype in (torch.float32, torch.float64):
            for gamma in (0.1, 0.0):
                name = f"{' x '.join(map(str, shape))}, {str(dtype)[6:]}"
                row = ratios(shape, dtype, gamma, rounds)
                print(f"| {name} | {gamma:g} |", " | ".join(row), "|", flush=True)


if __name__ == "__main__":
    main()
