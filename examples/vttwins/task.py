"""What a run of run.py learns: the interface of train.py and finetune.py.

Requirements: torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn
from torch.utils.data import Dataset

from examples.vttwins.config import Settings
from examples.vttwins.distributed import Place
from examples.vttwins.model import VideoTextModel
from examples.vttwins.words import Vocabulary

if TYPE_CHECKING:
    from examples.vttwins.run import Run


class Task(Protocol):
    """What is learned: the samples, the loss, and what of the model is trained.

    Its constructor checks the settings and the files that they name.
    """

    @property
    def settings(self) -> Settings: ...

    @property
    def items(self) -> int:
        """Training samples in an epoch."""

    @property
    def clips(self) -> int:
        """Clips in a sample."""

    def digests(self) -> dict[str, str]:
        """Digests of the files that the settings name, by the field."""

    def vocabulary(self) -> Vocabulary | None:
        """The words of a new run; None: those of the word vectors."""

    def model(self, vocabulary: Vocabulary | None) -> tuple[VideoTextModel, Vocabulary]:
        """The model as training begins, and the vocabulary."""

    def dataset(self, vocabulary: Vocabulary) -> Dataset[dict[str, Any]]: ...

    def groups(self, model: VideoTextModel) -> list[dict[str, Any]]:
        """Parameter groups for the optimizer; "scale" multiplies the learning rate."""

    def train_mode(self, network: nn.Module) -> None: ...

    def loss(self, network: nn.Module, batch: dict[str, Any], number: int, place: Place) -> Tensor:
        """This rank's part of the loss of the batch with this number; the batch is on the CPU."""

    def evaluate(self, model: VideoTextModel, vocabulary: Vocabulary) -> dict[str, Any]:
        """What ``evaluate.evaluate`` returns, on data that is held out."""

    def going_on(self, out: Path, step: int) -> None:
        """Called on the first rank before a run goes on and a file of it is changed.

        Raises:
            SystemExit: a sentence about what does not fit the files in ``out``.
        """

    def started(self, run: Run) -> None:
        """Called on the first rank before the first step, here or after an interruption."""

    def finished(self, run: Run) -> None:
        """Called on the first rank after the last step."""
