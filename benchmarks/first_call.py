"""What a process pays before its first result: the import, compilation, and loading from the cache.

    python -m benchmarks.first_call

Every figure is that of a fresh process, the cold ones with an empty cache of their own; medians
over the rounds. The first call is a value and its gradient from the cost, of lattices for each of
the two tiers of the CPU kernels. Importing numba, which waits for the first call, is counted apart.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile

ROUNDS = 3
SHAPES = {"small": (8, 8, 8), "large": (2, 100, 100)}

PROGRAM = """
import json, sys, time
def seconds(since):
    return time.perf_counter() - since
import torch
start = time.perf_counter()
import softdtw_kernels
imported = seconds(start)
start = time.perf_counter()
import numba
numba_imported = seconds(start)
shape, dtype = json.loads(sys.argv[1]), getattr(torch, sys.argv[2])
cost = torch.rand(shape, dtype=dtype, requires_grad=True)
start = time.perf_counter()
softdtw_kernels.soft_dtw_from_cost(cost).sum().backward()
print(json.dumps([imported, numba_imported, seconds(start)]))
"""


def fresh_process(shape: tuple[int, ...], dtype: str, cache: str) -> list[float]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(shape), dtype],
        env={**os.environ, "NUMBA_CACHE_DIR": cache},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def main() -> None:
    imports, numba_imports = [], []
    print("| first value and gradient, seconds beyond importing numba | cold | from the cache |")
    print("|---|---:|---:|")
    for dtype in ("float32", "float64"):
        for name, shape in SHAPES.items():
            cold, warm = [], []
            for _ in range(ROUNDS):
                with tempfile.TemporaryDirectory() as cache:
                    cold.append(fresh_process(shape, dtype, cache)[2])
                    imported, numba_imported, first_call = fresh_process(shape, dtype, cache)
                    warm.append(first_call)
                imports.append(imported)
                numba_imports.append(numba_imported)
            row = f"{statistics.median(cold):.2f} | {statistics.median(warm):.2f}"
            print(f"| {dtype}, {name} lattices | {row} |", flush=True)
    print(f"\nimport softdtw_kernels beyond torch: {statistics.median(imports):.3f} s")
    print(f"import numba: {statistics.median(numba_imports):.2f} s")


if __name__ == "__main__":
    main()
