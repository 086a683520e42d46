"""A small use of every kernel, for compute-sanitizer: each way of sharing out the work once.

    python -m tests.gpu.sanitized [FAMILY ...]

Racecheck gets no `block`: the flags by which the warps of a block wait for each other are ordered
by acquire and release, which it does not know; the race detector of the emulator does.
"""

from __future__ import annotations

import sys

import torch

from softdtw_kernels._cuda import operators as cupy_cuda


def main(families: list[str]) -> None:
    launcher = cupy_cuda.launcher_of(torch.cuda.current_device())
    for dtype in (torch.float32, torch.float64):
        for shape in ((3, 8, 8), (2, 40, 300)):
            for weak in (False, True):
                cost = torch.rand(shape, dtype=dtype, device="cuda")
                cost[0, 1, 2] = 1e30  # this item goes through the slow arithmetic too
                items = shape[0]
                gamma = torch.full((items,), 0.1, dtype=torch.float64, device="cuda")
                dummy = gamma * 5 if weak else None
                limits = (gamma, dummy, None, None, None)
                ones = torch.ones(items, dtype=dtype, device="cuda")
                for launcher.family in families:
                    cupy_cuda.value(cost, *limits)
                    cupy_cuda.gradient(cost, *limits, ones, True)
                    _, state = cupy_cuda.value_and_state(cost, *limits)
                    cupy_cuda.gradient_from_state(cost, *limits, state, ones, True)
                    cupy_cuda.hessian_product(
                        cost, *limits, ones, cost.clamp(max=1), gamma, gamma if weak else None
                    )
                launcher.family = None
                smoothed = cupy_cuda.smooth(cost, gamma, None, None, 1.0)
                cupy_cuda.smooth_vjp(cost, gamma, None, None, 1.0, smoothed)
        cost = -torch.rand(48, 8, 64, 8, dtype=dtype, device="cuda").transpose(1, 2)
        cost[0, 1, 2, 3] = -1e30  # for the slow kernel of small pairs
        gamma = torch.full((48, 64), 0.1, dtype=torch.float64, device="cuda")
        ones = torch.ones(48, 64, dtype=dtype, device="cuda")
        for dummy in (None, gamma * 5):
            for c in (cost, cost[..., :7, :5]):
                cupy_cuda.value(c, gamma, dummy, None, None, None)
                cupy_cuda.gradient(c, gamma, dummy, None, None, None, ones, False)
                cupy_cuda.smoothed_value(c, gamma, dummy, None, None, 1.0)
                cupy_cuda.smoothed_gradient(c, gamma, dummy, None, None, 1.0, ones, False)
        for items in (2, 600):  # strips that wait for each other, and whole items
            x = torch.rand(items, 70, 5, dtype=dtype, device="cuda")
            cupy_cuda.squared_distances(x[:2], x[:2])
            ones = torch.ones(items, dtype=dtype, device="cuda")
            for gamma in (0.1, 0.0):  # the latter by the slow arithmetic
                gammas = torch.full((items,), gamma, dtype=torch.float64, device="cuda")
                for kind in ("sqeuclidean", "negative_dot"):
                    problem = (x, x, gammas, None, None, None, kind)
                    cupy_cuda.fused_value(*problem)
                    cupy_cuda.fused_gradient(*problem, ones, True, True, True)
                    _, state = cupy_cuda.fused_value_and_state(*problem)
                    cupy_cuda.fused_gradient_from_state(*problem, state, ones, True, True, True)
    torch.cuda.synchronize()


if __name__ == "__main__":
    main(sys.argv[1:] or ["warp", "block", "long"])
