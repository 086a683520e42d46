"""Machine instructions a cell in the steady loops of the sweeps, by compiler and disassembler.

    python tests/cuda_instructions.py [ARCHITECTURE ...]    prints a table; sm_90 if none is named
    python tests/cuda_instructions.py --record    writes what tests ask for: cuda_instructions.json

Needs what cuda_registers.py needs, and the package nvidia-cuda-nvdisasm: `cuobjdump -sass`, which
calls that, prints nothing without it. Innermost loops are told by jumps backward, and what each
does by what it computes: exponentials and logarithms in fixed.cuh, exponentials alone in
narrow.cuh, polynomials in Scaled; with reciprocals where probabilities are kept.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from cuda_registers import (
    MAIN,
    NVRTC,
    Budget,
    Compiler,
    Kernel,
    digest_of,
    file_of,
    name_of,
    resources,
)

from softdtw_kernels._cuda import fixed
from softdtw_kernels._cuda.variants import Variant

NVDISASM = file_of("nvidia-cuda-nvdisasm", "nvdisasm")
STEPS = 4  # of a loop of strip.cuh, which is unrolled


def text_of(machine_code: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(machine_code)
        file.flush()
        command = [str(NVDISASM), "-c", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def loops(text: str) -> Iterator[list[str]]:
    """The instructions of every innermost loop."""
    found: list[str] = []
    places: dict[str, int] = {}
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            places[label[1]] = len(found)
        elif instruction := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            found.append(instruction[1])
    jumps = [
        (places[target[1]], end)
        for end, instruction in enumerate(found)
        if (target := re.search(r"\bBRA\b.*\((\.L_x_\d+)\)", instruction))
        and places.get(target[1], end + 1) <= end
    ]
    for begin, end in jumps:
        if not any(begin <= b and e <= end for b, e in jumps if (b, e) != (begin, end)):
            yield found[begin : end + 1]


def names(loop: list[str]) -> Counter[str]:
    """How many there are of each operation, without conditions and types."""
    bare = [re.sub(r"^@!?U?P\w+\s+", "", instruction).split()[0] for instruction in loop]
    return Counter(b if b.startswith("MUFU") else b.split(".")[0] for b in bare)


def kind_of(count: Counter[str]) -> str | None:
    """What a loop does; None for what is not one of the sweeps' own."""
    if count["MUFU.LG2"]:
        format_ = "Long" if count["VABSDIFF"] == 0 else "Short"
    elif count["MUFU.EX2"]:
        format_ = "Narrow"
    elif (
        count["SHFL"] == 4 * STEPS
        and count["FFMA"] >= 12 * STEPS
        and count["VIADDMNMX"] + count["VIMNMX"] + count["IMNMX"]
    ):
        format_ = "Scaled"
    else:
        return None
    return format_ + (" recomputing" if count["MUFU.RCP"] else " forward")


FIXED, LATTICE = fixed.variants()[1], Variant(torch.float32, False, 2, False, 1)
PATTERN = replace(LATTICE, pattern=True)


RECORDS = Path(__file__).with_suffix(".json")


def kernel_of(variant: Variant) -> Kernel:
    return Kernel(variant.source, variant.options, Budget(0, 0))


def loops_of(variant: Variant, code: bytes) -> dict[str, float]:
    """Instructions a cell of each loop; of loops for edges and without, the latter."""
    of_step = variant.columns * (fixed.ROWS if variant is FIXED else STEPS)
    best: dict[str, float] = {}
    for loop in loops(text_of(code)):
        count, cells = names(loop), of_step
        kind = kind_of(count)
        if variant is FIXED and kind:  # some loops do two tiles
            cells = count["MUFU.EX2"] // 2
        # Two numbers flow to the left; of lattice.cu each is asked for from two lanes. With a
        # pattern the share of a row in the ends comes from a third.
        results = count["STG"] if variant is FIXED else count["STG"] + count["STS"]
        if kind is None and results and not count["LDGSTS"]:
            flows = 2 * fixed.ROWS if variant is FIXED else (4 + variant.pattern) * STEPS
            kind = "backward" if count["SHFL"] == flows else None
        if kind and len(loop) / cells < best.get(kind, 1e9):
            best[kind] = len(loop) / cells
    return best


def table(
    architecture: str, kernels: Sequence[Variant] = (FIXED, LATTICE, PATTERN)
) -> Iterator[tuple[str, str, float]]:
    """Kernel, loop, and instructions a cell."""
    compiler = Compiler(NVRTC)
    for variant in kernels:
        code = compiler.compile(kernel_of(variant), architecture)
        registers, stack = resources(code)
        name = f"{variant.source}{', patterns' * variant.pattern}"
        name += f", {registers} registers, {stack} bytes of stack"
        yield from ((name, kind, number) for kind, number in loops_of(variant, code).items())


def seal_of(variant: Variant, found: dict[str, float]) -> str:
    """Of all that the counts depend on, this file included, and of the counts."""
    digest = digest_of(kernel_of(variant), MAIN)
    content = json.dumps([digest, sorted(found.items())]).encode() + Path(__file__).read_bytes()
    return hashlib.sha256(content).hexdigest()[:16]


def recorded(variant: Variant) -> tuple[str, dict[str, float]]:
    """A seal, and the counts that it was put on."""
    records = json.loads(RECORDS.read_text(encoding="utf-8")) if RECORDS.exists() else {}
    seal, found = records.get(name_of(kernel_of(variant)), ("", {}))
    return seal, found


def counted(variant: Variant) -> dict[str, float]:
    """Instructions a cell of each loop on MAIN: as recorded, or by the compiler if that was for
    another source or compiler.
    """
    seal, found = recorded(variant)
    if seal == seal_of(variant, found):
        return found
    return loops_of(variant, Compiler(NVRTC).compile(kernel_of(variant), MAIN))


def write_records() -> None:
    found = {name_of(kernel_of(v)): (v, counted(v)) for v in (FIXED, LATTICE, PATTERN)}
    records = {name: [seal_of(v, counts), counts] for name, (v, counts) in found.items()}
    RECORDS.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if NVRTC is None or NVDISASM is None:
        sys.exit("needs the packages nvidia-cuda-nvrtc and nvidia-cuda-nvdisasm")
    if sys.argv[1:] == ["--record"]:
        write_records()
        sys.exit()
    for architecture in sys.argv[1:] or [MAIN]:
        for name, kind, number in table(architecture):
            print(f"{architecture:7} {name:44} {kind:20} {number:5.1f}")
