"""A small use of every kernel, for compute-sanitizer: each way of sharing out the work once.

    python -m tests.gpu.sanitized [FAMILY ...]

Racecheck gets no `block`: the flags by which the warps of a block wait for each other are ordered
by acquire and release, which it does not know; the race detector of the emulator does.
"""

from __future__ import annotations

import sys

import torch

from softdtw_kernels._cuda.launcher import launcher_of
from softdtw_kernels._cuda.operators import OF_GPUS
from softdtw_kernels._problem import FeatureProblem, Problem, SmoothedProblem, Smoothing


def main(families: list[str]) -> None:
    launcher = launcher_of(torch.cuda.current_device())
    for dtype in (torch.float32, torch.float64):
        for shape in ((3, 8, 8), (2, 40, 300)):
            for weak in (False, True):
                cost = torch.rand(shape, dtype=dtype, device="cuda")
                cost[0, 1, 2] = 1e30  # this item goes through the slow arithmetic too
                items = shape[0]
                gamma = torch.full((items,), 0.1, dtype=torch.float64, device="cuda")
                dummy = gamma * 5 if weak else None
                problem = Problem(cost, gamma, dummy, None, None, None)
                ones = torch.ones(items, dtype=dtype, device="cuda")
                for launcher.family in families:
                    OF_GPUS.value(problem)
                    OF_GPUS.gradient(problem, ones, True)
                    _, state = OF_GPUS.value_and_state(problem)
                    OF_GPUS.gradient_from_state(problem, state, ones, True)
                    OF_GPUS.hessian_product(
                        problem, ones, cost.clamp(max=1), gamma, gamma if weak else None
                    )
                launcher.family = None
                smoothing = Smoothing(cost, gamma, None, None, 1.0)
                OF_GPUS.smooth_vjp(smoothing, OF_GPUS.smooth(smoothing))
        cost = -torch.rand(48, 8, 64, 8, dtype=dtype, device="cuda").transpose(1, 2)
        cost[0, 1, 2, 3] = -1e30  # for the slow kernel of small pairs
        gamma = torch.full((48, 64), 0.1, dtype=torch.float64, device="cuda")
        ones = torch.ones(48, 64, dtype=dtype, device="cuda")
        for dummy in (None, gamma * 5):
            for c in (cost, cost[..., :7, :5]):
                problem = Problem(c, gamma, dummy, None, None, None)
                OF_GPUS.value(problem)
                OF_GPUS.gradient(problem, ones, False)
                smoothed = SmoothedProblem(c, gamma, dummy, None, None, 1.0)
                OF_GPUS.smoothed_value(smoothed)
                OF_GPUS.smoothed_gradient(smoothed, ones, False)
        for items in (2, 600):  # strips that wait for each other, and whole items
            x = torch.rand(items, 70, 5, dtype=dtype, device="cuda")
            OF_GPUS.squared_distances(x[:2], x[:2])
            ones = torch.ones(items, dtype=dtype, device="cuda")
            for gamma in (0.1, 0.0):  # the latter by the slow arithmetic
                gammas = torch.full((items,), gamma, dtype=torch.float64, device="cuda")
                for kind in ("sqeuclidean", "negative_dot"):
                    fused = FeatureProblem(x, x, gammas, None, None, None, kind)
                    OF_GPUS.fused_value(fused)
                    OF_GPUS.fused_gradient(fused, ones, True, True, True)
                    _, state = OF_GPUS.fused_value_and_state(fused)
                    OF_GPUS.fused_gradient_from_state(fused, state, ones, True, True, True)
    torch.cuda.synchronize()


if __name__ == "__main__":
    main(sys.argv[1:] or ["warp", "block", "long"])
