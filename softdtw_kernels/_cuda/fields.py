"""The arguments of a call in the form that the kernels take: a struct of fields of 8 bytes.

Requirements: torch only. The names and the order of the fields are those of one list in the source
of each kernel; see source/problem.cuh. Nothing here reads a value of a tensor on the device.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._backends import in_shape
from .._checks import check_lattice
from .._lattice import lattice_size
from .._problem import PatternProblem, Problem
from .recipe import Argument, Buffer, Place, Recipe
from .variants import Shape

SOURCES = Path(__file__).parent / "source"


@cache
def own_field_names(file: str, macro: str) -> tuple[str, ...]:
    """The fields that are a kernel's own in order, read from the one list of them in its source."""
    text = (SOURCES / file).read_text()
    body = text[text.index(f"#define {macro}(X)") :].split("\n\n", 1)[0]
    return tuple(re.findall(r"X\([^,]+, (\w+)\)", body))


def field_names(file: str, macro: str) -> tuple[str, ...]:
    """The fields of a kernel on a batch: those of the batch come first."""
    return own_field_names("problem.cuh", "SOFTDTW_BATCH_FIELDS") + own_field_names(file, macro)


# What a tensor with one entry an item can be: no tensor; one number for all items, on the device or
# read from host memory; or an entry each.
ABSENT, ONE, NUMBER, EACH = "absent", "one", "number", "each"
NOTHING: tuple[str, Buffer] = ABSENT, None


def item_buffer(tensor: Tensor, device: torch.device) -> tuple[str, Buffer]:
    """Its form and what goes to the kernels; an expanded scalar is not copied.

    A scalar in host memory becomes a plain number: reading it waits for nothing.
    """
    stride, at_home = tensor.stride(), tensor.device == device
    if not any(stride) or all(s == 0 or n == 1 for s, n in zip(stride, tensor.shape, strict=True)):
        if at_home:
            return ONE, tensor
        return NUMBER, (tensor if tensor.numel() == 1 else tensor.as_strided((), ())).item()
    if not at_home:
        tensor = tensor.to(device, non_blocking=True)
    return EACH, tensor if stride == (1,) else tensor.reshape(-1)


def item_buffers(
    tensors: Sequence[Tensor | None], device: torch.device
) -> tuple[tuple[str, ...], tuple[Buffer, ...]]:
    """The forms and the buffers."""
    forms: list[str] = []
    buffers: list[Buffer] = []
    for tensor in tensors:
        form, buffer = NOTHING if tensor is None else item_buffer(tensor, device)
        forms.append(form)
        buffers.append(buffer)
    return tuple(forms), tuple(buffers)


def item_fields(name: str, form: str, buffer: Any) -> dict[str, Argument]:
    """As `item_buffer` returned them, or with a place for the buffer."""
    if form == NUMBER:
        return {name: None, f"{name}_stride": 0, f"{name}_number": buffer}
    return {name: None if form == ABSENT else buffer, f"{name}_stride": int(form == EACH)}


STRIDES = ("b0", "b1", "b2", "row", "column")


def strides(prefix: str, given: tuple[int, ...]) -> dict[str, Argument]:
    """Of (*, N, M) with at most three leading dimensions, the missing ones 0."""
    given = (0,) * (5 - len(given)) + given
    return {f"{prefix}_{name}": s for name, s in zip(STRIDES, given, strict=True)}


def few_dimensions(x: Tensor) -> Tensor:
    """With at most three leading dimensions, as the kernels take; the operators give two."""
    return x if x.dim() <= 5 else x.reshape(-1, *x.shape[-2:])


def with_few_dimensions(problem: Problem) -> Problem:
    cost = few_dimensions(problem.cost)
    return problem if cost is problem.cost else problem._replace(cost=cost)


def new_like(cost: Tensor, zeroed: bool = False) -> Tensor:
    """An output in the shape and, where they are dense, the strides of the cost."""
    return torch.zeros_like(cost) if zeroed else torch.empty_like(cost)


def with_strides_of(out: Tensor, x: Tensor) -> Tensor:
    """x in the dtype, shape and strides of an output; a copy only where it must be."""
    x = x.reshape(out.shape)
    if x.dtype == out.dtype and x.stride() == out.stride():
        return x
    return torch.empty_like(out).copy_(x)


# The tensors with one entry an item, the last for derivatives of the value only.
ITEMS = ("gamma", "dummy", "x_lengths", "y_lengths", "grad_value")


class Layout(NamedTuple):
    """All that the launches of a batch depend on: neither addresses nor what the tensors hold."""

    dtype: torch.dtype
    shape: torch.Size  # of the cost (*, N, M)
    stride: tuple[int, ...]
    forms: tuple[str, ...]  # of ITEMS
    bandwidth: int | None
    dense: tuple[int, ...] | None = None  # strides of the matrices that come out

    @classmethod
    def of(
        cls,
        cost: Tensor,
        forms: tuple[str, ...],
        bandwidth: int | None,
        dense: tuple[int, ...] | None = None,
    ) -> Layout:
        return cls(cost.dtype, cost.shape, cost.stride(), forms, bandwidth, dense)

    def batch(self, buffers: dict[str, Any]) -> Batch:
        """The buffers hold all memory, or the places of it."""
        check_lattice(None if self.forms[1] == ABSENT else self.forms[1], self.bandwidth)
        leading = (1, 1, 1, *self.shape[:-2])[-3:]
        fields: dict[str, Argument] = {
            "cost": buffers.get("cost"),
            "pairs": self.shape[:-2].numel(),
            "batch1": leading[1],
            "batch2": leading[2],
            "rows": self.shape[-2],
            "columns": self.shape[-1],
            "bandwidth": -1 if self.bandwidth is None else self.bandwidth,
            **strides("stride", self.stride),
            **({} if self.dense is None else strides("dense", self.dense)),
        }
        for name, form in zip(ITEMS, self.forms, strict=False):
            fields |= item_fields(name, form, buffers.get(name))
        return Batch(self, fields)

    def recipe(self, *others: str, first: Sequence[str] = ("cost",)) -> Recipe:
        """An empty one, whose inputs are in this order: the first, the items, the others."""
        return Recipe(*first, *ITEMS[: len(self.forms)], *others)


class RawLayout(NamedTuple):
    """Of costs with 2 w in them, for a cost of warping w: what both were before."""

    dtype: torch.dtype
    stride: tuple[int, ...]
    warp_form: str

    def of_all(self, buffers: dict[str, Any]) -> dict[str, Argument]:
        """The fields of every launch, given places of "raw" and "warp"."""
        single = int(self.dtype == torch.float32)
        return {**item_fields("warp", self.warp_form, buffers["warp"]), "single": single}

    def of_wide(self, buffers: dict[str, Any]) -> dict[str, Argument]:
        """Those of the launches in the wide arithmetic that differ."""
        return {"cost": buffers["raw"], **strides("stride", self.stride)}


RAW = "raw", "warp"  # the inputs of a recipe behind all others


class Raw(NamedTuple):
    """Such costs of few dimensions, and the cost of warping, as buffers."""

    layout: RawLayout
    buffers: tuple[Buffer, Buffer]

    @classmethod
    def of(cls, cost: Tensor, warp: Tensor) -> Raw:
        cost = few_dimensions(cost.detach())
        form, buffer = item_buffer(warp, cost.device)
        return cls(RawLayout(cost.dtype, cost.stride(), form), (cost, buffer))


def with_warps(problem: PatternProblem) -> tuple[Tensor, Tensor, Raw]:
    """The costs of a problem with 2 w in them, in float64, the cost of warping there, and both as
    they were before.
    """
    warp, cost = problem.warp.to(problem.cost.device), problem.cost.detach()
    warp = torch.where(warp.isfinite(), warp, math.nan)
    warped = cost.double() + 2 * warp[..., None, None]
    return warped, warp, Raw.of(cost, warp)


@dataclass
class Batch:
    """The arguments that all launches of one call share."""

    layout: Layout
    fields: dict[str, Argument]

    @property
    def dtype(self) -> torch.dtype:
        return self.layout.dtype

    @property
    def rows(self) -> int:
        return self.layout.shape[-2]

    @property
    def columns(self) -> int:
        return self.layout.shape[-1]

    @property
    def pairs(self) -> int:
        return self.layout.shape[:-2].numel()

    @property
    def weak(self) -> bool:
        return self.layout.forms[1] != ABSENT

    @property
    def ragged(self) -> bool:
        """Whether lengths are given."""
        return self.layout.forms[2:4] != (ABSENT, ABSENT)

    @property
    def shape(self) -> Shape:
        rows, columns = lattice_size(self.rows, self.columns, self.weak)
        bandwidth = self.layout.bandwidth
        band = -1 if bandwidth is None or self.ragged else bandwidth
        return Shape(self.dtype, self.pairs, rows, columns, self.weak, band, bandwidth is not None)


DOUBLES = {"gamma_number", "dummy_number", "warp_number", "skip_number", "origin_count"}


def struct(header: str, macro: str, fields: dict[str, Argument]) -> list[Argument]:
    """The fields in the kernel's order; null and 0 where nothing is given."""
    return in_order(field_names(header, macro), fields)


def in_order(names: Sequence[str], fields: dict[str, Argument]) -> list[Argument]:
    unknown = fields.keys() - set(names)
    assert not unknown, f"the kernel has no fields {unknown}"
    values: list[Argument] = []
    for name in names:
        value = fields.get(name)
        if name in DOUBLES and not isinstance(value, Place):
            value = 0.0 if value is None else float(value)
        values.append(value)
    return values


def leaves_cells(problem: Problem) -> bool:
    """Whether some cells may be beyond lengths or band, where no kernel writes."""
    _, _, _, x_lengths, y_lengths, bandwidth = problem
    return x_lengths is not None or y_lengths is not None or bandwidth is not None


def items_of(problem: Problem, *grad_value: Tensor) -> tuple[Tensor | None, ...]:
    """ITEMS, as far as they are given."""
    return (problem.gamma, problem.dummy, problem.x_lengths, problem.y_lengths, *grad_value)


def sum_of_parts(parts: Tensor | None, batch: torch.Size, like: Tensor) -> Tensor:
    """(pairs, parts) to the shape `batch`; zeros if None."""
    if parts is not None:
        return in_shape(parts if parts.shape[-1] == 1 else parts.sum(-1), batch)
    return torch.zeros(batch, dtype=torch.float64, device=like.device)
