"""How to make a tensor (*, N, D) of another container or order: the ends of messages, code that
runs.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


def to_tensor(x: Any, name: str, of_frames: bool) -> str:
    """How to make a tensor of something else, as the end of a message. of_frames: of sequences."""
    if isinstance(x, PackedSequence):
        return (
            f"; unpack it: {name}, lengths = torch.nn.utils.rnn.pad_packed_sequence({name}, "
            "batch_first=True), and pass both"
        )
    is_list, kind = isinstance(x, (list, tuple)), getattr(x, "dtype", None)
    if (is_list or getattr(kind, "kind", "") == "O") and of_frames and len(x):
        tensors = is_list and all(isinstance(sequence, Tensor) for sequence in x)
        if tensors or _differ_in_length(x):
            return _to_pad(x, name, tensors)
    if hasattr(x, "__array__"):
        array = name
        if not getattr(kind, "isnative", True):
            array = f'{name}.astype({name}.dtype.newbyteorder("="))'
        elif min(getattr(x, "strides", ()), default=0) < 0:
            array = f"{name}.copy()"
        return f"; convert it with torch.as_tensor({array})"
    return f"; convert it with torch.tensor({name})" if is_list else ""


def features_first(first: Tensor, second: Tensor, remedy: str, shape: str) -> str:
    """What to do where the dimension before the last is that of the features, as the end of a
    message; nothing where it is not.
    """
    if first.shape[-2] != second.shape[-2]:
        return ""
    return f"; if the features come first, {shape}, pass {remedy}"


def _differ_in_length(sequences: Any) -> bool:
    return len({len(s) if hasattr(s, "__len__") else 0 for s in sequences}) > 1


def _to_pad(sequences: Any, name: str, tensors: bool) -> str:
    of_one = "sequence" if tensors else "torch.as_tensor(sequence)"
    if all(map(_has_numbers, sequences)):
        of_one += "[:, None]"  # one feature a frame
    parts = name if of_one == "sequence" else f"[{of_one} for sequence in {name}]"
    return (
        f"; pad it with torch.nn.utils.rnn.pad_sequence({parts}, batch_first=True), and pass the "
        f"lengths [len(sequence) for sequence in {name}]"
    )


def _has_numbers(sequence: Any) -> bool:
    if hasattr(sequence, "ndim"):
        return bool(sequence.ndim == 1)
    return isinstance(sequence, (list, tuple)) and not any(hasattr(x, "__len__") for x in sequence)
