"""What the host does for the CUDA kernels: shapes to launches, scratch memory, arguments.

Requirements: torch only. `cupy_cuda` runs these functions with a launcher for GPUs, the tests with
that of their emulator. Nothing here reads a value of a tensor on the device, so nothing waits for
it. All memory is torch's; what must start at zero is zeroed on the stream. Each family of launches
is a recipe (`_cuda_launch`), made once for the shapes, strides and dtype of a call.

The kernels and their three ways of sharing out the work are described in source/lattice.cu and
source/strip.cuh.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._backends import in_shape
from .._checks import check_lattice
from .plan import (
    BACKWARD,
    FORWARD,
    LANES,
    Argument,
    Batch,
    Plan,
    StatePlans,
    ceil_divide,
    divide,
    fast_plan,
    round_up,
    state_plans,
    total,
    wide_plan,
)
from .recipe import Buffer, Launcher, Place, Recipe

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


def item_buffer(tensor: Tensor | None, device: torch.device) -> tuple[str, Buffer]:
    """One of the four forms and what goes to the kernels; an expanded scalar is not copied.

    A scalar in host memory becomes a plain number: reading it waits for nothing.
    """
    if tensor is None:
        return ABSENT, None
    stride, at_home = tensor.stride(), tensor.device == device
    single = tensor.numel() == 1
    if single or all(s == 0 or n == 1 for s, n in zip(stride, tensor.shape, strict=True)):
        if at_home:
            return ONE, tensor
        return NUMBER, (tensor if single else tensor.as_strided((), ())).item()
    if not at_home:
        tensor = tensor.to(device, non_blocking=True)
    return EACH, tensor if stride == (1,) else tensor.reshape(-1)


def item_buffers(
    tensors: Sequence[Tensor | None], device: torch.device
) -> tuple[tuple[str, ...], tuple[Buffer, ...]]:
    """The forms and the buffers."""
    forms, buffers = zip(*[item_buffer(tensor, device) for tensor in tensors], strict=True)
    return forms, buffers


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


def batch(
    cost: Tensor,
    dense: tuple[int, ...] | None,
    forms: tuple[str, ...],
    bandwidth: int | None,
    buffers: dict[str, Any],
) -> Batch:
    """`forms` are those of ITEMS, all memory that of the buffers: of the cost only dtype, shape and
    strides count.
    """
    leading = (1, 1, 1, *cost.shape[:-2])[-3:]
    fields: dict[str, Argument] = {
        "cost": buffers["cost"],
        "pairs": cost.shape[:-2].numel(),
        "batch1": leading[1],
        "batch2": leading[2],
        "rows": cost.shape[-2],
        "columns": cost.shape[-1],
        "bandwidth": -1 if bandwidth is None else bandwidth,
        **strides("stride", cost.stride()),
        **({} if dense is None else strides("dense", dense)),
    }
    form_of = dict(zip(ITEMS, forms, strict=False))
    check_lattice(None if form_of["dummy"] == ABSENT else form_of["dummy"], bandwidth)
    for name, form in form_of.items():
        fields |= item_fields(name, form, buffers.get(name))
    ragged = not form_of["x_lengths"] == form_of["y_lengths"] == ABSENT
    return Batch(cost, fields, form_of["dummy"] != ABSENT, bandwidth, ragged)


def without_memory(dtype: torch.dtype, shape: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Stands for a tensor in a recipe."""
    return torch.empty_strided(shape, stride, dtype=dtype, device="meta")


def run_lattice(
    launcher: Launcher,
    order: int,
    cost: Tensor,
    dense: tuple[int, ...] | None,
    items: Sequence[Tensor | None],
    bandwidth: int | None,
    others: dict[str, Tensor | None],
    with_parameters: bool,
    state: int | None = None,
) -> list[Any]:
    """All launches of one call. Returns the derivatives in gamma and dummy, (pairs, parts), and the
    state that a value has kept, each of them None if there is none.

    `items` are ITEMS; `others` the remaining tensors, by name. A value keeps a state if `state` is
    not None; a gradient then starts from the one among the others, which has so many bytes.
    """
    forms, buffers = item_buffers(items, cost.device)
    recipe = lattice_recipe(
        order,
        (launcher.multiprocessors, launcher.shared_limit, launcher.family),
        cost.dtype,
        cost.shape,
        cost.stride(),
        dense,
        forms,
        bandwidth,
        tuple(name for name, tensor in others.items() if tensor is not None),
        with_parameters,
        state,
    )
    given = [tensor for tensor in others.values() if tensor is not None]
    return recipe.follow(launcher, cost.device, (cost, *buffers, *given))


class Counters:
    """What the warps of a call share: a status for each item, unless a state has it, and, where
    strips wait for each other, two tickets and for each strip the progress of its forward sweep,
    its backward sweep and, if asked for, of one thing more.

    Zeros where several warps have an item; else its warp writes the status before anybody reads it.
    """

    def __init__(
        self, recipe: Recipe, plan: Plan, pairs: int, kept_status: Any = None, progresses: int = 2
    ) -> None:
        self.strips = pairs * plan.strips * plan.by_ticket
        zeroed = plan.family != "warp"
        self.status = kept_status
        if kept_status is None:
            self.status = recipe.scratch(pairs, torch.int32, zeroed)
        self.place: Any = None
        if plan.by_ticket:
            self.place = recipe.scratch(2 + progresses * self.strips, torch.int32, zeroed)

    def progress(self, k: int) -> Any:
        begin = 2 + k * self.strips
        return self.place[begin : begin + self.strips]

    def launches(self, plan: Plan, phases: int) -> list[dict[str, Any]]:
        """What differs between the launches of a plan: the sweeps that each does, and its places
        here.
        """
        if not plan.by_ticket:
            return [{"phases": phases}]
        return [
            {"phases": phase, "ticket": self.place[k : k + 1], "progress": self.progress(k)}
            for k, phase in enumerate((FORWARD, BACKWARD))
            if phase & phases
        ]


def sums(recipe: Recipe, pairs: int, parts: int, wanted: bool) -> Any:
    """A place for (pairs, parts) sums of strips, the next result of the recipe; None if not wanted.

    0 where an item has fewer strips; every item has one.
    """
    if not wanted:
        place = None
    elif parts == 1:
        place = recipe.output(pairs, 1, dtype=torch.float64)
    else:
        place = recipe.scratch(pairs * parts, torch.float64, zeroed=True)
    recipe.returns(place, pairs, parts, dtype=torch.float64)
    return place


def phases_of(order: int) -> int:
    return FORWARD | BACKWARD if order else FORWARD


class Sweeps(NamedTuple):
    """What one arithmetic does in a call; the wide one is without state."""

    plan: Plan
    phases: int
    state: Any = None  # its place, where one is left or given

    @property
    def kept(self) -> dict[str, Any]:
        """The fields that point into the state."""
        return divide(self.state, self.plan.state_bytes)

    def returns_state(self, recipe: Recipe) -> None:
        """As the next result of the recipe, where this leaves one."""
        left = None if self.phases & BACKWARD else self.state
        recipe.returns(left, total(self.plan.state_bytes), dtype=torch.uint8)


def with_state(recipe: Recipe, plans: StatePlans, order: int, given: int) -> Sweeps:
    """A value that leaves a state, or a gradient from one of `given` bytes."""
    size = total(plans.state_bytes)
    if order:
        if given != size:
            raise ValueError(f"the state of such a call has {size} bytes, got {given}")
        return Sweeps(plans.backward, BACKWARD, recipe.inputs["state"])
    # A warp that does an item alone writes its status, several add to it.
    zeros = 0 if plans.forward.family == "warp" else round_up(plans.state_bytes["status"])
    make = partial(empty_but, zeros) if zeros else torch.empty
    return Sweeps(plans.forward, FORWARD, recipe.output(size, dtype=torch.uint8, make=make))


def empty_but(zeros: int, size: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """As torch.empty, with so many zeros at the end."""
    memory = torch.empty(size, dtype=dtype, device=device)
    memory[-zeros:].zero_()
    return memory


@lru_cache(maxsize=1024)
def lattice_recipe(
    order: int,
    device: tuple[int, int, str | None],
    dtype: torch.dtype,
    shape: torch.Size,
    stride: tuple[int, ...],
    dense: tuple[int, ...] | None,
    forms: tuple[str, ...],
    bandwidth: int | None,
    others: tuple[str, ...],
    with_parameters: bool,
    state: int | None,
) -> Recipe:
    """What `run_lattice` does; `device` is what a launcher says of its own."""
    recipe = Recipe("cost", *ITEMS[: len(forms)], *others)
    buffers = recipe.inputs
    task = batch(without_memory(dtype, shape, stride), dense, forms, bandwidth, buffers)
    plans = None if state is None else state_plans(task, *device)
    if state is None or plans is None:
        fast = Sweeps(fast_plan(task, order, *device), phases_of(order))
    else:
        fast = with_state(recipe, plans, order, state)
    wide = wide_plan(task, order, device[0])
    pairs, parts = task.pairs, max(fast.plan.strips, wide.strips)

    grad_gamma = sums(recipe, pairs, parts, with_parameters)
    grad_dummy = sums(recipe, pairs, parts, with_parameters and task.weak)
    fast.returns_state(recipe)
    counters = Counters(recipe, fast.plan, pairs, fast.kept.get("status"))
    # The wide launch comes when the fast ones are done with the scratch memory.
    scratch = recipe.scratch(max(fast.plan.total_bytes, wide.total_bytes))
    fields: dict[str, Argument] = {
        **task.fields,
        **{name: buffers[name] for name in others if name != "state"},
        "grad_gamma": grad_gamma,
        "grad_dummy": grad_dummy,
        "parts": parts,
        "status": counters.status,
    }
    for plan, launch in launches_of(fast, Sweeps(wide, phases_of(order)), counters, scratch):
        phases = launch["phases"]
        launch["ring_chunks"] = plan.ring_chunks(phases)
        recipe.launch(
            "lattice",
            plan.variant.options,
            ceil_divide(plan.warps, plan.warps_in_block),
            plan.warps_in_block * LANES,
            plan.shared_bytes(phases),
            struct("problem.cuh", "SOFTDTW_LATTICE_FIELDS", fields | launch),
        )
    return recipe


def launches_of(
    fast: Sweeps, wide: Sweeps, counters: Counters, scratch: Any
) -> Iterator[tuple[Plan, dict[str, Any]]]:
    """All of a call, with the fields that are theirs."""
    for sweeps in (fast, wide):
        plan = sweeps.plan
        memory = sweeps.kept | divide(scratch, plan.scratch_bytes)
        for launch in counters.launches(plan, sweeps.phases):
            yield plan, memory | plan.sizes | launch


DOUBLES = {"gamma_number", "dummy_number", "origin_count"}


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


def value(
    launcher: Launcher,
    cost: Tensor,
    gamma: Tensor,
    dummy: Tensor | None,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    bandwidth: int | None,
) -> Tensor:
    items = gamma, dummy, x_lengths, y_lengths
    return run_value(launcher, cost, items, bandwidth, None)[0]


def value_and_state(
    launcher: Launcher,
    cost: Tensor,
    gamma: Tensor,
    dummy: Tensor | None,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    bandwidth: int | None,
) -> tuple[Tensor, Tensor]:
    """The value, and what `gradient` may go on with: empty where it would be too large."""
    items = gamma, dummy, x_lengths, y_lengths
    out, state = run_value(launcher, cost, items, bandwidth, 0)
    return out, no_state(cost) if state is None else state


def no_state(like: Tensor) -> Tensor:
    return like.new_empty(0, dtype=torch.uint8)


def from_state(state: Tensor | None) -> tuple[dict[str, Tensor], int | None]:
    """What a gradient adds to its other tensors, and the size; nothing for an empty state."""
    return ({}, None) if state is None or not state.numel() else ({"state": state}, state.numel())


def run_value(
    launcher: Launcher,
    cost: Tensor,
    items: Sequence[Tensor | None],
    bandwidth: int | None,
    state: int | None,
) -> tuple[Tensor, Tensor | None]:
    """`state` as in `run_lattice`."""
    out = cost.new_empty(cost.shape[:-2])
    kept = None
    if out.numel():
        outputs: dict[str, Tensor | None] = {"value": out}
        _, _, kept = run_lattice(
            launcher, 0, few_dimensions(cost), None, items, bandwidth, outputs, False, state
        )
    return out, kept


def leaves_cells(x_lengths: Tensor | None, y_lengths: Tensor | None, bandwidth: int | None) -> bool:
    """Whether some cells may be beyond lengths or band, where no kernel writes."""
    return x_lengths is not None or y_lengths is not None or bandwidth is not None


def sum_of_parts(parts: Tensor | None, batch: torch.Size, like: Tensor, wanted: bool) -> Tensor:
    """(pairs, parts) to the shape `batch`; zeros if None, or anything where it is not wanted."""
    if parts is not None:
        return in_shape(parts if parts.shape[-1] == 1 else parts.sum(-1), batch)
    # Zeros would be one more launch.
    new = torch.zeros if wanted else torch.empty
    return new(batch, dtype=torch.float64, device=like.device)


def gradient(
    launcher: Launcher,
    cost: Tensor,
    gamma: Tensor,
    dummy: Tensor | None,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    bandwidth: int | None,
    grad_value: Tensor,
    with_parameters: bool,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """With a state of the value that is not empty, without sweeping forward."""
    shape, cost = cost.shape, few_dimensions(cost)
    out = new_like(cost, leaves_cells(x_lengths, y_lengths, bandwidth))
    in_gamma = in_dummy = None
    if out.numel():
        items = gamma, dummy, x_lengths, y_lengths, grad_value
        kept, size = from_state(state)
        others: dict[str, Tensor | None] = {"grad_cost": out, **kept}
        in_gamma, in_dummy, _ = run_lattice(
            launcher, 1, cost, out.stride(), items, bandwidth, others, with_parameters, size
        )
    return (
        in_shape(out, shape),
        sum_of_parts(in_gamma, shape[:-2], cost, with_parameters),
        sum_of_parts(in_dummy, shape[:-2], cost, with_parameters),
    )


def hessian_product(
    launcher: Launcher,
    cost: Tensor,
    gamma: Tensor,
    dummy: Tensor | None,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    bandwidth: int | None,
    grad_value: Tensor,
    tangent_cost: Tensor,
    tangent_gamma: Tensor,
    tangent_dummy: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shape, cost = cost.shape, few_dimensions(cost)
    out = new_like(cost, leaves_cells(x_lengths, y_lengths, bandwidth))
    tangent_value = cost.new_empty(shape[:-2])
    in_gamma = in_dummy = None
    if out.numel():
        if dummy is not None and tangent_dummy is None:
            tangent_dummy = cost.new_zeros(shape[:-2], dtype=torch.float64)
        others = {
            "grad_cost": out,
            "tangent_value": tangent_value,
            "tangent_cost": with_strides_of(out, tangent_cost),
            "tangent_gamma": tangent_gamma.contiguous(),
            "tangent_dummy": None if tangent_dummy is None else tangent_dummy.contiguous(),
        }
        items = gamma, dummy, x_lengths, y_lengths, grad_value
        in_gamma, in_dummy, _ = run_lattice(
            launcher, 2, cost, out.stride(), items, bandwidth, others, True
        )
    return (
        tangent_value,
        in_shape(out, shape),
        sum_of_parts(in_gamma, shape[:-2], cost, True),
        sum_of_parts(in_dummy, shape[:-2], cost, True),
    )


def path(
    launcher: Launcher,
    cost: Tensor,
    dummy: Tensor | None,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    bandwidth: int | None,
) -> list[Tensor]:
    """Where the gradient at gamma = 0 is 1.

    Rows and columns of a path only grow, so row-major order is its order.
    """
    ones = cost.new_ones(cost.shape[:-2])
    zeros = cost.new_zeros(cost.shape[:-2], dtype=torch.float64)
    visits, _, _ = gradient(
        launcher, cost, zeros, dummy, x_lengths, y_lengths, bandwidth, ones, False
    )
    return [item.nonzero() for item in (visits > 0).reshape(-1, *cost.shape[-2:])]
