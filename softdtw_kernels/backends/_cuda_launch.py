"""Calls of CUDA kernels, prepared once and then repeated.

Requirements: torch only. But for addresses, what a call launches depends on shapes, strides, dtypes
and the device alone: a `Recipe` is made of them once, and following it costs a small part of the
Python time. The tests follow the same recipes with the launcher of their emulator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

Buffer: TypeAlias = Tensor | float | None  # a number that goes in place of an address, or null


@dataclass(frozen=True)
class Place:
    """In a recipe, an argument that only a call knows: a buffer's address, or a number instead.

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


class Launch(NamedTuple):
    kernel: tuple[str, tuple[str, ...]]  # source, whose name the kernel has, and options
    grid: tuple[int]
    block: tuple[int]
    shared_bytes: int
    values: tuple[float, ...]  # the arguments, 0 where a place is
    places: tuple[tuple[int, int, int], ...]  # position, buffer, offset in bytes
    ends: tuple[int | None, ...] = ()  # of the places, for those who check bounds

    def arguments(self, addresses: Sequence[float]) -> list[float]:
        values = list(self.values)
        for position, buffer, offset in self.places:
            values[position] = addresses[buffer] + offset
        return values


class Launcher(Protocol):
    """Runs kernels.

    `multiprocessors` says how much work keeps the device busy, `shared_limit` how many bytes of
    shared memory a block can have, `family` which of the three to take (None: by shape).
    """

    multiprocessors: int
    shared_limit: int
    family: str | None

    def run(self, launches: Sequence[Launch], buffers: Sequence[Buffer]) -> None:
        """Launch one after the other, with the addresses of the buffers."""
        ...


class Recipe:
    """The launches of a call and the memory they need beside its inputs."""

    def __init__(self, *inputs: str) -> None:
        self.inputs: dict[str, Any] = {name: Place(k) for k, name in enumerate(inputs)}
        self.allocations: list[Callable[..., Tensor]] = []
        self.launches: list[Launch] = []
        self.results: list[Place | None] = []  # buffers that a call returns

    def new(self, make: Callable[..., Tensor], *size: int, dtype: torch.dtype) -> Any:
        """Memory that every call gets anew, by torch.empty or torch.zeros: a place for it, or None
        if it is of size 0.
        """
        if 0 in size:
            return None
        self.allocations.append(partial(make, size, dtype=dtype))
        return Place(len(self.inputs) + len(self.allocations) - 1, dtype.itemsize)

    def launch(
        self,
        source: str,
        options: tuple[str, ...],
        grid: int,
        block: int,
        shared_bytes: int,
        arguments: Sequence[Any],
    ) -> None:
        """Arguments may be places."""
        places = [(k, a) for k, a in enumerate(arguments) if isinstance(a, Place)]
        self.launches.append(
            Launch(
                (source, options),
                (grid,),
                (block,),
                shared_bytes,
                tuple(0 if a is None or isinstance(a, Place) else a for a in arguments),
                tuple((k, place.buffer, place.begin) for k, place in places),
                tuple(place.end for _, place in places),
            )
        )

    def follow(
        self, launcher: Launcher, device: torch.device, inputs: Sequence[Buffer]
    ) -> list[Any]:
        """One call, given the inputs in the order of their names. Returns the results."""
        buffers = [*inputs, *[make(device=device) for make in self.allocations]]
        launcher.run(self.launches, buffers)
        return [None if place is None else buffers[place.buffer] for place in self.results]


def address(buffer: Buffer) -> float:
    """What a kernel is given: CuPy passes integers and floats as the 8 bytes of every parameter."""
    if isinstance(buffer, Tensor):
        return buffer.data_ptr()
    return 0 if buffer is None else buffer
