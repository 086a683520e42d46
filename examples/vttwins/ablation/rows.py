"""The rows of the ablation: five are the paper's Table 3, four change the operator.

Requirements: none beyond Python.

Source: Ko et al., CVPR 2022, supplement, Table 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PAPER_COLUMNS = ("HMDB51", "UCF101", "YouCook2 R@10", "MSR-VTT R@10", "CrossTask CTR")


@dataclass(frozen=True)
class Row:
    """One setting of the loss; ``paper`` has the five numbers of ``PAPER_COLUMNS``, if it is there.

    The temperature is that of the contrast. Alignments add up about eight costs and need none.
    Single cosines lie in [-1, 1], so MIL-NCE gets the softness that gamma is for the alignments.
    """

    name: str
    title: str
    operator: str = "s2dtw"
    cost: str = "shifted_cosine"
    contrastive: bool = True
    gamma: float = 0.1
    temperature: float = 1.0
    paper: tuple[float, ...] | None = None

    def loss(self) -> dict[str, Any]:
        """What ``loss.SequenceLoss`` takes, and ``config.Settings`` under the same names."""
        return {
            "operator": self.operator,
            "cost": self.cost,
            "contrastive": self.contrastive,
            "gamma": self.gamma,
            "temperature": self.temperature,
        }


ROWS = (
    Row("s2dtw", "(1) S2DTW, shifted cosine, gamma .1", paper=(42.0, 72.1, 12.5, 17.4, 28.2)),
    Row("plain", "(2) plain cosine", cost="cosine", paper=(38.6, 68.0, 6.8, 9.7, 22.5)),
    Row("alone", "(3) no contrast", contrastive=False, paper=(5.7, 7.9, 0.0, 0.3, 11.9)),
    Row("gamma001", "(4) gamma .01", gamma=0.01, paper=(33.1, 62.1, 10.4, 13.8, 21.8)),
    Row("gamma1", "(5) gamma 1", gamma=1.0, paper=(33.7, 57.8, 9.8, 12.7, 24.0)),
    Row("soft_dtw", "soft-DTW", operator="soft_dtw"),
    Row("smoothed", "local smoothing only", operator="smoothed"),
    Row("weak", "weak alignment only", operator="weak"),
    Row("mil_nce", "MIL-NCE, temperature .1", operator="mil_nce", temperature=0.1),
)
BY_NAME = {row.name: row for row in ROWS}
