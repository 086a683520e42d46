"""What each benchmark is: how its videos are seen, and what the paper reports for it.

Requirements: none.

The numbers are those of the supplement of Ko et al., CVPR 2022: Table 3, row 1 (trained on a tenth
of HowTo100M, evaluated without training on the benchmark, or with a linear probe), and Tables 1 and
2 (fine-tuned).
"""

from __future__ import annotations

from dataclasses import dataclass, field

ZERO_SHOT = "paper, Table 3, row 1 (a tenth of HowTo100M)"
FINE_TUNED = "paper, fine-tuned (Tables 1 and 2)"


@dataclass(frozen=True)
class Benchmark:
    """A benchmark of the paper.

    Args:
        title: its name.
        kind: what is measured: "probe", "retrieval" or "steps".
        frames, fps: of a window; fps 0 is the rate of the file.
        windows: of each segment or video.
        size: how many videos or pairs the paper's numbers are of; 0 is unknown.
        paper: {row: {column: number}} to stand beside a result.
        comparable: which number may be compared with which, a sentence or two.
    """

    title: str
    kind: str
    frames: int
    fps: float
    windows: int
    size: int
    paper: dict[str, dict[str, float]] = field(default_factory=dict)
    comparable: str = ""


PROBE = (
    "The paper's number is comparable with the mean of the three splits: frozen features of 1024 "
    "dimensions, a linear SVM with C = 100, ten windows of 32 frames."
)
RETRIEVAL = (
    "The paper's numbers are comparable with text to video by the dot product, and only those: the "
    "row of Table 3 with a checkpoint that was not trained on {title}, the fine-tuned row with one "
    "that was."
)
STEPS = (
    "The paper's number is comparable with (c) alone, which is what the released code computes. "
    "(a) is the number to compare with work that follows CrossTask's own protocol, (b) with the "
    "zero-shot numbers of the HowTo100M family. The three are different measures."
)

BENCHMARKS = {
    "hmdb51": Benchmark(
        "HMDB51", "probe", 32, 0.0, 10, 6766, {ZERO_SHOT: {"mean": 42.0}}, PROBE
    ),
    "ucf101": Benchmark(
        "UCF101", "probe", 32, 0.0, 10, 13320, {ZERO_SHOT: {"mean": 72.1}}, PROBE
    ),
    "youcook2": Benchmark(
        "YouCook2", "retrieval", 32, 10.0, 10, 3350,
        {
            ZERO_SHOT: {"R@10": 12.5},
            FINE_TUNED: {"R@1": 17.2, "R@5": 43.8, "R@10": 57.2, "MedR": 7.0},
        },
        RETRIEVAL.format(title="YouCook2"),
    ),
    "msrvtt": Benchmark(
        "MSR-VTT", "retrieval", 32, 20.0, 8, 1000,
        {
            ZERO_SHOT: {"R@10": 17.4},
            FINE_TUNED: {"R@1": 19.4, "R@5": 40.0, "R@10": 52.5, "MedR": 9.0},
        },
        RETRIEVAL.format(title="MSR-VTT"),
    ),
    "crosstask": Benchmark(
        "CrossTask", "steps", 32, 10.0, 1, 0, {ZERO_SHOT: {"CTR (c)": 28.2}}, STEPS
    ),
}  # fmt: skip
