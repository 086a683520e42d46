"""What a run writes about itself: log.jsonl, evaluations.jsonl, skipped-RANK.jsonl and TensorBoard.

Requirements: tensorboard if wanted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from examples.vttwins import checkpoint
from examples.vttwins.config import Settings
from examples.vttwins.distributed import Place

BOARD = ("loss", "gradient_norm", "learning_rate", "clips_per_second", "skipped")


class Logs:
    """The logs of a run: of steps and evaluations on the first rank, of skipped videos on each."""

    def __init__(self, out: Path, step: int, place: Place, settings: Settings) -> None:
        self._steps = self._evaluations = self._board = None
        self.evaluated_steps: set[int] = set()
        self._skips = checkpoint.Log(out / f"skipped-{place.rank}.jsonl", step)
        if place.first:
            self._steps = checkpoint.Log(out / checkpoint.LOG, step)
            if settings.eval_every:
                # An evaluation after a step belongs to the checkpoint after it.
                path = out / checkpoint.EVALUATIONS
                self._evaluations = checkpoint.Log(path, step + 1)
                self.evaluated_steps = {entry["step"] for entry in checkpoint.read_log(path)}
            self._board = _tensorboard(out, step) if settings.tensorboard else None

    def __enter__(self) -> Logs:
        return self

    def __exit__(self, *error: object) -> None:
        for writer in (self._steps, self._evaluations, self._skips, self._board):
            if writer is not None:
                writer.close()

    def write(self, entry: dict[str, Any], skipped: list[tuple[str, str]]) -> None:
        """One step: its numbers, and the videos that were skipped with the reason."""
        for video, reason in skipped:
            self._skips.write({"step": entry["step"], "video": video, "reason": reason})
        if self._steps is not None:
            self._steps.write(entry)
        if self._board is not None:
            for name in BOARD:
                self._board.add_scalar(name, entry[name], entry["step"])

    def evaluated(self, step: int, result: dict[str, Any]) -> None:
        """An evaluation after so many steps."""
        ways = ("text_to_video", "video_to_text")
        if self._evaluations is not None:
            self._evaluations.write({"step": step, **{way: result[way] for way in ways}})
            self.evaluated_steps.add(step)
        if self._board is not None:
            for way in ways:
                for name, value in result[way].items():
                    self._board.add_scalar(f"{way}/{name}", value, step - 1)


def _tensorboard(out: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print("tensorboard is not installed: logging to log.jsonl only")
        return None
    return SummaryWriter(str(out / "tensorboard"), purge_step=step)
