"""Weights of the model from and to files: safe, and tolerant of the layouts found in the wild.

Requirements: torch; safetensors for files of that kind.

Files of weights are untrusted input: torch.load runs with weights_only=True, never unpickling code.
Accepted: a flat state dict, or one nested under "state_dict", "model_state_dict" or "model" (a
training checkpoint); names with or without the prefixes that DistributedDataParallel ("module."),
torch.compile ("_orig_mod.") and trainers ("model.") add; either front end, told apart by the
channels of the first convolution; files from before BatchNorm counted its batches; and the video
part alone, with a warning.

Files of runs of this program hold a digest of the vocabulary, under "files" in checkpoints and in
the metadata of safetensors, by which check_words tells other words from those trained with. Older
files and those of others have none: there, only the number of words can be compared.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from examples.vttwins.checkpoint import read_tensors, write_atomically
from examples.vttwins.model import TextModule, VideoTextModel
from examples.vttwins.words import Vocabulary

PREFIXES = ("module.", "_orig_mod.", "model.")
NESTED_UNDER = ("state_dict", "model_state_dict", "model")
TEXT_PART = "text_module."
WORDS = "vocabulary"  # under which name the digest of the vocabulary is noted
BATCH_COUNT = ".num_batches_tracked"
FRONT_END_OF_CHANNELS = {3: "plain", 24: "space_to_depth"}


class WeightsError(ValueError):
    """A file that does not hold weights of this model; the message lists what does not fit."""


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the state dict in a file, on the CPU, without nesting and without prefixes.

    Raises:
        WeightsError: the file is not a state dict, or holds more than tensors and plain data.
    """
    return _read(path)[0]


def _read(path: str | Path) -> tuple[dict[str, Tensor], str | None]:
    """The state dict in a file, and the digest of its vocabulary if the file has it."""
    path = Path(path)
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                content: Any = {name: file.get_tensor(name) for name in file.keys()}
                notes = file.metadata()
        except SafetensorError as error:
            raise WeightsError(f"{path}: not a safetensors file: {error}") from None
    else:
        try:
            content = read_tensors(path)
        except ValueError as error:
            raise WeightsError(
                f"{path}: torch.load(weights_only=True) refused this file, which is damaged or "
                f"holds more than tensors: {error}"
            ) from None
        notes = content.get("files") if isinstance(content, Mapping) else None
    digest = notes.get(WORDS) if isinstance(notes, Mapping) else None
    state = clean_state_dict(content, str(path))
    return state, digest if isinstance(digest, str) else None


def clean_state_dict(content: Any, source: str = "checkpoint") -> dict[str, Tensor]:
    """Undo the nesting and the prefixes of a loaded checkpoint."""
    while isinstance(content, Mapping):
        inner = [k for k in NESTED_UNDER if isinstance(content.get(k), Mapping)]
        if not inner:
            break
        content = content[inner[0]]
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{source}: expected a state dict, got {type(content).__name__}")
    strange = [str(k) for k, v in content.items() if not isinstance(v, Tensor)]
    if strange:
        raise WeightsError(f"{source}: these entries are no tensors: {_some(strange)}")
    state = {str(k): v for k, v in content.items()}
    stripped = True
    while stripped:
        stripped = False
        for prefix in PREFIXES:
            if all(k.startswith(prefix) for k in state):
                state = {k[len(prefix) :]: v for k, v in state.items()}
                stripped = True
    return state


def _some(names: list[str], most: int = 8) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def check_fits(state: Mapping[str, Tensor], model: torch.nn.Module, source: str) -> None:
    """Raise WeightsError naming missing keys, unknown keys and wrong shapes, if there are any."""
    expected = model.state_dict()
    missing = [k for k in expected if k not in state]
    unknown = [k for k in state if k not in expected]
    shapes = [
        f"{k} is {tuple(state[k].shape)}, expected {tuple(v.shape)}"
        for k, v in expected.items()
        if k in state and state[k].shape != v.shape
    ]
    found = [
        f"{len(names)} {what}: {_some(names)}"
        for what, names in (("missing", missing), ("unknown", unknown), ("of wrong shape", shapes))
        if names
    ]
    if found:
        raise WeightsError(f"{source} does not fit the model. " + ". ".join(found))


def check_words(
    vocabulary: Vocabulary, source: str | Path, model: VideoTextModel, path: str | Path
) -> None:
    """``compare_words`` for a model that was loaded from ``path``."""
    rows = model.text_module.word_embd.num_embeddings
    compare_words(vocabulary, source, rows, model.words_digest, path)


def compare_words(
    vocabulary: Vocabulary, source: str | Path, rows: int, digest: str | None, path: str | Path
) -> None:
    """Refuse a vocabulary that is not the one which weights were trained with.

    Args:
        source: where the vocabulary is from.
        rows, digest: of the weights' table of words, and of its vocabulary, None where unknown.
        path: where the weights are from.

    Raises:
        WeightsError: the number of words is another, or the words are.
    """
    if len(vocabulary) != rows:
        raise WeightsError(
            f"{source} has {len(vocabulary)} words with the pad, the model of {path} {rows}"
        )
    if digest not in (None, vocabulary.digest):
        raise WeightsError(
            f"{source} has as many words as the model of {path}, but they are not those that it "
            "was trained with, or not in their order"
        )


def _completed(state: dict[str, Tensor], model: torch.nn.Module) -> dict[str, Tensor]:
    """The state with the counts of batches that old files lack; nothing here reads them."""
    lacking = {k for k in model.state_dict() if k.endswith(BATCH_COUNT)} - state.keys()
    return {**state, **{k: torch.zeros((), dtype=torch.int64) for k in lacking}}


def _holds_text(state: Mapping[str, Tensor]) -> bool:
    return any(name.startswith(TEXT_PART) for name in state)


def load_into(
    model: torch.nn.Module,
    path: str | Path,
    vocabulary: Vocabulary | None = None,
    source: str | Path = "the vocabulary",
) -> None:
    """Load a file of weights into a model; all names and shapes must fit.

    A file of the video part alone leaves the text part as it is, with a warning.

    Args:
        vocabulary: of the model; the words that the file was trained with must be these.
        source: where the vocabulary is from, for the message.

    Raises:
        WeightsError: something does not fit; the model is then left as it was.
    """
    state, digest = _read(path)
    if not _holds_text(state):
        digest = None
        kept = {k: v for k, v in model.state_dict().items() if k.startswith(TEXT_PART)}
        state = {**state, **kept}
        warnings.warn(
            f"{path} holds the video part alone; the text part keeps its values", stacklevel=2
        )
    state = _completed(state, model)
    check_fits(state, model, str(path))
    if vocabulary is not None:
        rows = len(state[TEXT_PART + "word_embd.weight"])
        compare_words(vocabulary, source, rows, digest, path)
    model.load_state_dict(state)


def load_model(path: str | Path, train_words: bool = False) -> VideoTextModel:
    """Build the model that a file of weights needs, front end and sizes detected, and load it.

    A file of the video part alone gives a model with random text weights and no word but the pad,
    with a warning. The table of word vectors is the file's, not a copy.

    Raises:
        WeightsError: the file is of another model; the message lists what does not fit.
    """
    state, digest = _read(path)
    first = state.get("conv1.conv1.weight")
    channels = first.shape[1] if first is not None and first.ndim == 5 else None
    front_end = FRONT_END_OF_CHANNELS.get(channels) if channels is not None else None
    if front_end is None and first is not None:
        raise WeightsError(
            f"{path}: conv1.conv1.weight is {tuple(first.shape)}; a front end has 3 input channels "
            "(plain) or 24 (space_to_depth)"
        )
    head = state.get("fc.weight")
    embedding_dim = head.shape[0] if head is not None and head.ndim else 512
    if first is not None and not _holds_text(state):
        with torch.random.fork_rng(devices=[]):
            text = TextModule(1, embedding_dim)
        state |= {TEXT_PART + name: value for name, value in text.state_dict().items()}
        warnings.warn(f"{path} holds the video part alone; texts cannot be embedded", stacklevel=2)
    words = state.get("text_module.word_embd.weight")
    if words is not None and words.ndim == 2:  # the model takes it over: no second table
        words = state["text_module.word_embd.weight"] = words.float()
    else:
        words = None
    with torch.random.fork_rng(devices=[]):  # the values are overwritten: leave the generator be
        model = VideoTextModel(
            front_end or "plain",
            vocabulary_size=66250 if words is None else words.shape[0],
            embedding_dim=embedding_dim,
            word_dim=300 if words is None else words.shape[1],
            train_words=train_words,
            word_vectors=words,
        )
    state = _completed(state, model)
    check_fits(state, model, str(path))
    model.load_state_dict(state)
    model.words_digest = digest
    return model


def check_export() -> None:
    """Find out whether ``export_safetensors`` will have its library, days before it is called.

    Raises:
        WeightsError: it is not installed.
    """
    if importlib.util.find_spec("safetensors") is None:
        raise WeightsError(
            "the weights at the end of a run need safetensors, which is not installed: "
            "pip install safetensors"
        )


def export_safetensors(model: VideoTextModel, path: str | Path) -> None:
    """Write the weights under their public names as safetensors, atomically.

    The digest of the model's vocabulary goes with them where it is known.
    """
    from safetensors.torch import save

    state = clean_state_dict(model.state_dict())
    state = {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}
    notes = None if model.words_digest is None else {WORDS: model.words_digest}
    write_atomically(path, lambda file: file.write(save(state, metadata=notes)))
