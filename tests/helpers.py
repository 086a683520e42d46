"""Comparisons and small procedures that several law files share."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import oracles
import torch
from hypothesis import settings

TESTS = Path(__file__).parent


def examples(count: int) -> settings:
    """Decorate a property test that draws more or fewer examples than others: so many where these
    draw 25, and where a profile asks for more, as many times more.
    """
    return settings(max_examples=count * settings.default.max_examples // 25)


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


def _with_package() -> dict[str, str]:
    """The environment, in which the package that is tested here is the one that is imported."""
    package = importlib.util.find_spec("softdtw_kernels").origin
    return {"PYTHONPATH": str(Path(package).parents[1]), **os.environ}


def _passed(
    done: subprocess.CompletedProcess[str],
) -> subprocess.CompletedProcess[str]:
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def _fresh(code: str) -> list[str]:
    """The command that runs `code` with the working directory off the path."""
    if sys.version_info >= (3, 11):
        return [sys.executable, "-P", "-c", code]
    return [sys.executable, "-c", f"import sys; sys.path.pop(0)\n{code}"]


def run_python(
    code: str, *arguments: str, environment: Mapping[str, str] | None = None, timeout: float = 150
) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter; a hang fails the test instead of blocking it.

    What runs is the package that is tested here, be another checkout's installed, or the one that
    PYTHONPATH names.
    """
    return _passed(
        subprocess.run(
            [*_fresh(code), *arguments],
            env={**_with_package(), **(environment or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    )


_FORKS = """
import importlib
import json
import os
import sys
import traceback
import torch

for name in sys.argv[1:]:
    importlib.import_module(name)
if "numba" in sys.argv:
    import numba
    import numpy as np

    numba.njit(lambda a: a[0, 0] + 1)(np.zeros((1, 1)))  # loads what compilation needs


def child(code, environment, folder, k):
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{folder}/{k}.{name}", os.O_WRONLY | os.O_CREAT), number)
    os.environ.update(environment, FORK=str(k))
    sys.path[:0] = environment.get("PYTHONPATH", "").split(os.pathsep)
    if "numba" in sys.modules:
        sys.modules["numba"].core.config.reload_config()
    exec(compile(code, "<forked>", "exec"), {"__name__": "__main__"})


for line in sys.stdin:
    count, folder, code, environment = json.loads(line)
    children = []
    for k in range(count):
        children.append(os.fork())
        if children[-1] == 0:
            status = 1
            try:
                child(code, environment, folder, k)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(json.dumps(statuses), flush=True)
"""


class Forks:
    """Processes forked from one that has imported torch and the modules that are named, but else
    nothing of this package. The variable FORK counts those of one run.

    For tests of first calls, and of what several processes leave for each other, where starting an
    interpreter, and loading the compiler, two and four seconds each time, are not what is tested.
    """

    def __init__(self, *imported: str, path: Path | None = None) -> None:
        self._imported = imported
        self._environment = _with_package()
        if path is not None:
            self._environment["PYTHONPATH"] += f"{os.pathsep}{path}"

    def __enter__(self) -> Forks:
        self._server = subprocess.Popen(
            [*_fresh(_FORKS), *self._imported],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.communicate()

    def run(
        self,
        code: str,
        environment: Mapping[str, str] | None = None,
        count: int = 1,
        timeout: float = 150,
    ) -> list[subprocess.CompletedProcess[str]]:
        """`code` in so many processes at once; a hang ends them all."""
        assert self._server.stdin is not None and self._server.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            print(
                json.dumps([count, folder, code, dict(environment or {})]),
                file=self._server.stdin,
                flush=True,
            )
            limit = threading.Timer(timeout, os.killpg, (self._server.pid, signal.SIGKILL))
            limit.start()
            answer = self._server.stdout.readline()
            limit.cancel()
            assert answer, f"the processes did not end within {timeout} s, or could not be forked"
            texts = (
                (Path(folder, f"{k}.{n}").read_text() for n in ("out", "err")) for k in range(count)
            )
            return [
                _passed(subprocess.CompletedProcess(code, status, *text))
                for status, text in zip(json.loads(answer), texts, strict=True)
            ]
