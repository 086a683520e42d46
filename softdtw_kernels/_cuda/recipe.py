"""Calls of CUDA kernels, prepared once and then repeated.

Requirements: torch and NumPy. But for addresses, what a call launches depends on shapes, strides,
dtypes and the device alone: a `Recipe` is made of them once, and following it costs a small part of
the Python time. The tests follow the same recipes with the launcher of their emulator.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

Buffer: TypeAlias = Tensor | float | None  # a number that goes in place of an address, or null
Argument: TypeAlias = Tensor | int | float | None  # what a field of a kernel is given; null if None


@dataclass(frozen=True)
class Place:
    """In a recipe, a field that only a call knows: a buffer's address, or a number instead.

    Slices count elements, as those of the one-dimensional buffer itself.
    """

    buffer: int
    unit: int = 1  # bytes of an element
    begin: int = 0  # in bytes
    end: int | None = None  # None: the whole buffer

    def __getitem__(self, part: slice) -> Place:
        begin = self.begin + part.start * self.unit
        end = self.end if part.stop is None else self.begin + part.stop * self.unit
        return Place(self.buffer, self.unit, begin, end)


class Result(NamedTuple):
    place: Place
    size: tuple[int, ...]
    dtype: torch.dtype

    def among(self, buffers: Sequence[Any]) -> Tensor:
        whole: Tensor = buffers[self.place.buffer]
        if self.place.end is None:
            return whole
        return whole[self.place.begin : self.place.end].view(self.dtype).view(self.size)


class Launch(NamedTuple):
    """A kernel takes one argument, a struct of fields of 8 bytes.

    CuPy converts each argument on its own: sixty of them cost six microseconds.
    """

    kernel: tuple[str, tuple[str, ...]]  # source, whose name the kernel has, and options
    grid: tuple[int]
    block: tuple[int]
    shared_bytes: int
    words: array[int]  # the fields, numbers by their bits, 0 where a place is
    struct: np.dtype[np.void]  # of their size
    places: tuple[tuple[int, int, int], ...]  # position, buffer, offset in bytes
    ends: tuple[int | None, ...] = ()  # of the places, for those who check bounds

    def argument(self, addresses: Sequence[int]) -> np.ndarray:
        """The struct, given `addresses_of` the buffers."""
        words = self.words[:]
        for position, buffer, offset in self.places:
            words[position] = addresses[buffer] + offset
        return np.frombuffer(words, self.struct)


class Launcher(Protocol):
    """Runs kernels.

    `multiprocessors` says how much work keeps the device busy, `shared_limit` how many bytes of
    shared memory a block can have, `family` which of the three to take, or "fixed" (None: by
    shape).
    """

    multiprocessors: int
    shared_limit: int
    family: str | None

    def run(self, launches: Sequence[Launch], buffers: Sequence[Buffer]) -> None:
        """Launch one after the other, with the addresses of the buffers."""
        ...


class Device(NamedTuple):
    """What plans need to know of a launcher."""

    multiprocessors: int
    shared_limit: int
    family: str | None

    @classmethod
    def of(cls, launcher: Launcher) -> Device:
        return cls(launcher.multiprocessors, launcher.shared_limit, launcher.family)


ALIGNMENT = 256  # of what shares a buffer, as of what torch allocates


class Recipe:
    """The launches of a call and the memory they need beside its inputs: at most one buffer, and
    one of zeros, which costs a launch, for all that the call itself makes use of.
    """

    def __init__(self, *inputs: str) -> None:
        self.inputs: dict[str, Any] = {name: Place(k) for k, name in enumerate(inputs)}
        self.sizes = [0, 0]  # of scratch memory in bytes, and of the part that is zeroed
        self.outputs: list[Callable[..., Tensor]] = []
        self.launches: list[Launch] = []
        self.results: list[Result | None] = []  # what a call returns

    def scratch(self, size: int, dtype: torch.dtype = torch.uint8, zeroed: bool = False) -> Any:
        """Memory for the time of the call: a place, or None if it is of size 0."""
        if size == 0:
            return None
        begin = round_up(self.sizes[zeroed])
        self.sizes[zeroed] = end = begin + size * dtype.itemsize
        return Place(len(self.inputs) + zeroed, dtype.itemsize, begin, end)

    def output(
        self, *size: int, dtype: torch.dtype, make: Callable[..., Tensor] = torch.empty
    ) -> Any:
        """Memory that outlives the call: a place."""
        self.outputs.append(partial(make, size, dtype=dtype))
        return Place(len(self.inputs) + 1 + len(self.outputs), dtype.itemsize)

    def returns(self, place: Any, *size: int, dtype: torch.dtype) -> None:
        """What is there, in this order; None where the place is None."""
        self.results.append(None if place is None else Result(place, size, dtype))

    def launch(
        self,
        source: str,
        options: tuple[str, ...],
        grid: int,
        block: int,
        shared_bytes: int,
        fields: Sequence[Any],
    ) -> None:
        """Fields may be places."""
        places = [(k, a) for k, a in enumerate(fields) if isinstance(a, Place)]
        words = array("q", [0 if isinstance(a, Place) else word(a) for a in fields])
        self.launches.append(
            Launch(
                (source, options),
                (grid,),
                (block,),
                shared_bytes,
                words,
                np.dtype(f"V{words.itemsize * len(words)}"),
                tuple((k, place.buffer, place.begin) for k, place in places),
                tuple(place.end for _, place in places),
            )
        )

    def follow(
        self, launcher: Launcher, device: torch.device, inputs: Sequence[Buffer]
    ) -> list[Any]:
        """One call, given the inputs in the order of their names. Returns the results."""
        scratch, zeroed = self.sizes
        buffers = [
            *inputs,
            torch.empty(scratch, dtype=torch.uint8, device=device) if scratch else None,
            torch.zeros(zeroed, dtype=torch.uint8, device=device) if zeroed else None,
            *[make(device=device) for make in self.outputs],
        ]
        launcher.run(self.launches, buffers)
        return [None if result is None else result.among(buffers) for result in self.results]


def round_up(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def addresses_of(buffers: Sequence[Buffer]) -> list[int]:
    """The 8 bytes that a kernel is given of each."""
    return [
        0 if buffer is None else buffer.data_ptr() if isinstance(buffer, Tensor) else word(buffer)
        for buffer in buffers
    ]


def word(value: float | None) -> int:
    """An integer, the bits of a float, or null."""
    if isinstance(value, float):
        return int(struct.unpack("q", struct.pack("d", value))[0])
    return 0 if value is None else value
