"""Use the installed wheel from outside the checkout: check_wheel.py CHECKOUT.

Fails unless the package comes from site-packages, holds every file of the checkout's package, knows
its version, and runs forward and backward.
"""

import sys
from importlib.metadata import version
from pathlib import Path

import torch

import softdtw_kernels

source = Path(sys.argv[1]).resolve() / "softdtw_kernels"
installed = Path(softdtw_kernels.__file__).resolve().parent
assert "site-packages" in installed.parts, f"imported from {installed}, not from the wheel"


def shipped(root: Path) -> set[str]:
    """The files a wheel should hold, relative to the package."""
    return {
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


missing = shipped(source) - shipped(installed)
assert not missing, f"the wheel lacks {sorted(missing)}"
assert "py.typed" in shipped(installed)
assert softdtw_kernels.__version__ == version("softdtw-kernels")

x = torch.linspace(0.0, 1.0, 60).reshape(2, 10, 3).requires_grad_()
y = torch.linspace(1.0, 0.0, 42).reshape(2, 7, 3)
value = softdtw_kernels.soft_dtw(x, y, gamma=0.1)
value.sum().backward()
oracle = softdtw_kernels.soft_dtw(x.detach(), y, gamma=0.1, backend="reference")
assert torch.allclose(value, oracle, rtol=1e-6), (value, oracle)
assert x.grad is not None and bool(torch.isfinite(x.grad).all())
print(
    f"softdtw-kernels {softdtw_kernels.__version__} from {len(shipped(installed))} files: "
    f"soft-DTW {value.tolist()}, gradient norm {x.grad.norm():.4f}"
)
