"""Comparisons and small procedures that several law files share."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import oracles
import torch

TESTS = Path(__file__).parent


def value_and_gradient(
    function: Callable[..., torch.Tensor], *inputs: torch.Tensor, **arguments: object
) -> tuple[torch.Tensor, ...]:
    """Return the value and the gradient of its sum by every input.

    Inputs that are given require the gradient: floating tensors that are among `arguments` do not.
    """
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    value = function(*leaves, **arguments)
    gradients = torch.autograd.grad(value, leaves, torch.ones_like(value))
    return (value.detach(), *gradients)


def derivative(
    output: torch.Tensor, *inputs: torch.Tensor, again: bool = False
) -> list[torch.Tensor]:
    """Return the gradients of a scalar, zeros where it is constant.

    The reference is a plain torch function: where it is linear (1 x 1), torch keeps no graph of its
    gradient, and says so by an error rather than by zeros. `again`: to be differentiated once more.
    """
    if not output.requires_grad:
        return [torch.zeros_like(t) for t in inputs]
    return list(
        torch.autograd.grad(
            output, inputs, create_graph=again, allow_unused=True, materialize_grads=True
        )
    )


def assert_value(
    got: float, truth: float, scale: float, relative: float, name: str = "value"
) -> None:
    """`got` is `truth` to a relative error of `scale` (see oracles.value_scale)."""
    if math.isinf(truth):
        assert got == truth, f"{name}: got {got}, expected {truth}"
    else:
        assert abs(got - truth) <= relative * scale, (
            f"{name}: got {got!r}, expected {truth!r}, off by {abs(got - truth) / scale:.1e}"
        )


def assert_close(got: object, truth: object, atol: float, name: str, rtol: float = 0.0) -> None:
    """Arrays agree to `atol`, NaN nowhere."""
    np.testing.assert_allclose(
        np.asarray(got, dtype=float),
        np.asarray(truth, dtype=float),
        rtol=rtol,
        atol=atol,
        err_msg=name,
    )


def bits(t: torch.Tensor) -> bytes:
    """Return the bytes of a tensor, for equality to the bit (NaN and the sign of zero included)."""
    return t.detach().contiguous().cpu().numpy().tobytes()


def assert_item(
    cost: np.ndarray,
    gamma: float,
    truth: oracles.Truth | oracles.Enumeration,
    value: float,
    visits: np.ndarray,
    name: str = "",
) -> None:
    """One item meets the float64 bars: value 1e-12 relative, gradient 1e-9 or 1e-6 absolute."""
    scale = oracles.value_scale(truth, cost, gamma)
    assert_value(value, truth.value, scale, 1e-12, f"value {name}")
    assert_close(visits, truth.visits, oracles.gradient_tolerance(cost, gamma), f"gradient {name}")


# For `run_python`, on Linux: the most memory since a moment, which the kernel counts.
PEAK_MEMORY = """
def peak_since():
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM"))


def start_of_peak():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return peak_since()
"""


def run_python(
    code: str, *arguments: str, environment: Mapping[str, str] | None = None, timeout: float = 150
) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter; a hang fails the test instead of blocking it.

    -P keeps the working directory off the path; what runs is the package that is tested here, be
    another checkout's installed, or the one that PYTHONPATH names.
    """
    package = importlib.util.find_spec("softdtw_kernels").origin
    here = {"PYTHONPATH": str(Path(package).parents[1])}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments],
        env={**here, **os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done
