"""Other steps, begins and ends than the plain recursion has, by the kernels of source/lattice.cu.

Requirements: torch only. Nothing here waits for the device, nor depends on what tensors hold. All
patterns have one compiled form: which steps there are, and what is open, are fields of the call.
Many small pairs go to source/tiny_pattern.cu first, a thread for each.

A cost of warping is added to the costs, in float64, where it may count: of a path of K pairs that
leaves out S frames, 2 K - n - m + S steps repeat a frame, so the value is that of costs C + 2 w and
of prices p + w, less (n + m) w. The wide arithmetic is given all of these as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._backends import in_shape
from .._operators.ops import is_number
from .._problem import PatternProblem
from . import fields, tiny
from .fields import (
    RAW,
    Batch,
    Layout,
    Raw,
    RawLayout,
    few_dimensions,
    leaves_cells,
    new_like,
    sum_of_parts,
    with_warps,
)
from .fixed import FIXED
from .plan import Plan, StatePlans, fast_plan, state_plans
from .recipe import Argument, Device, Launcher, Recipe
from .sweeps import (
    Counters,
    Sweeps,
    add_launch,
    launches_of,
    no_state,
    phases_of,
    sums,
    with_state,
)
from .variants import WIDE_COLUMNS, Variant, c_type, ceil_divide, columns_offered
from .wide import beside, wide_plan

SIDES = {"": 0, "x": 1, "y": 2, "xy": 3}  # as in source/pattern.cuh
BLOCKS_OF_VALUES = 16  # of a multiprocessor, where a thread needs next to no memory
HEAD = 2  # nodes of an item before those of its ends
ZERO = torch.zeros((), dtype=torch.float64, device="cpu")  # a number, whatever the default device

Four = tuple[Tensor, Tensor, Tensor, Tensor]


def variants() -> list[Variant]:
    """Every form of lattice.cu that a pattern can ask for."""
    return [
        Variant(dtype, wide, columns, False, order, pattern=True)
        for dtype in (torch.float32, torch.float64)
        for order in (0, 1)
        for wide in (False, True)
        for columns in ((WIDE_COLUMNS,) if wide else columns_offered(dtype, order))
    ]


def of_pattern(plan: Plan) -> Plan:
    return replace(plan, variant=replace(plan.variant, pattern=True))


@dataclass(frozen=True)
class TinyPattern:
    """One compiled form of tiny_pattern.cu: a thread for each pair."""

    dtype: torch.dtype
    columns: int
    order: int
    restricted: bool

    @property
    def options(self) -> tuple[str, ...]:
        return (
            f"-DWITH_COST={c_type(self.dtype)}",
            f"-DWITH_COLUMNS={self.columns}",
            f"-DWITH_ORDER={self.order}",
            f"-DWITH_RESTRICTED={int(self.restricted)}",
        )

    @property
    def row_bytes(self) -> int:
        """Of a thread: the node of the last column, and the probabilities of a row."""
        return 2 * self.dtype.itemsize * (1 + self.order * self.columns)


def tiny_variants() -> list[TinyPattern]:
    return [
        TinyPattern(dtype, columns, order, restricted)
        for dtype, offered in tiny.COLUMNS.items()
        for columns in offered
        for order in (0, 1)
        for restricted in (False, True)
    ]


@lru_cache(maxsize=1024)
def recipe_of(
    order: int,
    device: Device,
    layout: Layout,
    skip_form: str,
    sides: tuple[str, str, str],
    with_parameters: bool,
    is_tiny: bool,
    state: int | None,
    raw: RawLayout | None,
    wide_skip_form: str,
) -> Recipe:
    """Inputs are the cost, the items, the prices, the value or the gradient by the cost, and the
    state of a gradient that goes on from one. state, raw: as in `lattice.run`; with the latter, the
    price of the wide arithmetic is another one.
    """
    output = "grad_cost" if order else "value"
    more = (
        *("state",) * (order == 1 and state is not None),
        *(*RAW, "wide_skip") * (raw is not None),
    )
    recipe = layout.recipe("skip", output, *more)
    buffers = recipe.inputs
    task = layout.batch(buffers)
    nodes = HEAD + task.rows + task.columns
    if device.family == FIXED:
        device = device._replace(family="warp")
    plans = None if state is None or is_tiny else state_plans(task.shape, *device)
    if state is None or plans is None:
        fast = Sweeps(of_pattern(fast_plan(task.shape, order, *device)), phases_of(order))
    else:
        both = (replace(of_pattern(plan), end_nodes=nodes) for plan in plans)
        fast = with_state(recipe, StatePlans(*both), order, state)
    slow = of_pattern(wide_plan(task.shape, order, device.multiprocessors))
    wide = Sweeps(beside(slow, fast.plan), phases_of(order))
    every = [fast, wide]
    pairs, parts = task.pairs, max(sweeps.plan.strips for sweeps in every)
    grad_gamma = sums(recipe, pairs, parts, with_parameters)
    grad_skip = sums(recipe, pairs, parts, with_parameters)
    fast.returns_state(recipe)
    counters = Counters(recipe, fast, pairs)
    sizes = (sweeps.plan.slots * nodes * sweeps.plan.variant.node_bytes for sweeps in every)
    repeats, begins, ends = (SIDES[side] for side in sides)
    shared: dict[str, Argument] = {
        **task.fields,
        **fields.item_fields("skip", skip_form, buffers["skip"]),
        "repeats": repeats,
        "begins": begins,
        "ends": ends,
        "end_nodes": recipe.scratch(max(sizes)),
        output: buffers[output],
        "grad_gamma": grad_gamma,
        "grad_skip": grad_skip,
        "parts": parts,
        "status": counters.status,
        **(raw.of_all(buffers) if raw else {}),
    }
    names = (
        *fields.field_names("problem.cuh", "SOFTDTW_LATTICE_FIELDS"),
        *fields.own_field_names("pattern.cuh", "SOFTDTW_PATTERN_FIELDS"),
    )
    if is_tiny:
        first_of_tiny(recipe, order, device, task, names, shared)
    for plan, launch in launches_of(every, counters, recipe):
        if is_tiny and plan is fast.plan:
            continue
        if raw and plan is wide.plan:
            launch |= raw.of_wide(buffers)
            launch |= fields.item_fields("skip", wide_skip_form, buffers["wide_skip"])
        launch["ring_chunks"] = plan.ring_chunks(launch["phases"])
        struct = fields.in_order(names, shared | launch)
        add_launch(recipe, plan, launch["phases"], struct)
    return recipe


def first_of_tiny(
    recipe: Recipe,
    order: int,
    device: Device,
    task: Batch,
    names: Sequence[str],
    shared: dict[str, Argument],
) -> None:
    """A thread for each pair, in place of the launches that see an item first."""
    width = tiny.width_of(task)
    variant = TinyPattern(task.dtype, width, order, tiny.is_restricted(task, width))
    most = (BLOCKS_OF_VALUES, tiny.BLOCKS_OF_MULTIPROCESSOR)[order] * device.multiprocessors
    blocks = min(ceil_divide(task.pairs, tiny.THREADS), most)
    scratch = recipe.scratch(blocks * tiny.THREADS * task.rows * variant.row_bytes)
    launch = fields.in_order(names, {**shared, "tiles": scratch})
    recipe.launch("tiny_pattern", variant.options, blocks, tiny.THREADS, 0, launch)


def run(
    launcher: Launcher,
    order: int,
    problem: PatternProblem,
    out: Tensor,
    grad_value: tuple[Tensor, ...] = (),
    with_parameters: bool = False,
    state: Tensor | int | None = None,
    warped: Warped | None = None,
) -> list[Any]:
    """The sums by gamma and skip, None if not wanted, and the state that a value leaves, None if it
    leaves none. `out` is the value or the gradient; state: 0 of a value that may leave one, or the
    one that a gradient goes on from; warped: what the problem was before a cost of warping was
    added.
    """
    cost, device = problem.cost, problem.cost.device
    given = problem.gamma, None, problem.x_lengths, problem.y_lengths, *grad_value
    forms, buffers = fields.item_buffers(given, device)
    skip_form, skip = fields.item_buffer(problem.skip, device)
    dense = out.stride() if order else None
    kept = (state,) if isinstance(state, Tensor) else ()
    size = state.numel() if isinstance(state, Tensor) else state
    raw_layout, wide_skip_form = None, fields.ABSENT
    if warped:
        wide_skip_form, wide_skip = fields.item_buffer(warped.skip, device)
        raw_layout, kept = warped.raw.layout, (*kept, *warped.raw.buffers, wide_skip)
    recipe = recipe_of(
        order,
        Device.of(launcher),
        Layout.of(cost, forms, problem.bandwidth, dense),
        skip_form,
        (problem.repeat, problem.open_begin, problem.open_end),
        with_parameters,
        tiny.applies(cost, launcher.multiprocessors),
        size,
        raw_layout,
        wide_skip_form,
    )
    return recipe.follow(launcher, device, (cost, *buffers, skip, out, *kept))


def is_zero(warp: Tensor) -> bool:
    """Whether a cost of warping is known to be none: a number, which is in host memory."""
    return is_number(warp) and bool((warp == 0).all())


class Warped(NamedTuple):
    """Costs, the cost of warping, and the price of a frame left out, before it was in both."""

    raw: Raw
    skip: Tensor


def warped(problem: PatternProblem) -> tuple[PatternProblem, Warped]:
    """The problem with a cost of warping in its costs and prices, and what these were before."""
    cost, warp, raw = with_warps(problem)
    skip = problem.skip.to(warp.device) + warp
    return problem._replace(cost=cost, warp=ZERO, skip=skip), Warped(raw, problem.skip)


def value(launcher: Launcher, problem: PatternProblem) -> Tensor:
    return _value(launcher, problem, None)[0]


def value_and_state(launcher: Launcher, problem: PatternProblem) -> tuple[Tensor, Tensor]:
    """As `lattice.value_and_state`."""
    out, state = _value(launcher, problem, 0)
    return out, no_state(out) if state is None else state


def _value(
    launcher: Launcher, problem: PatternProblem, state: int | None, before: Warped | None = None
) -> tuple[Tensor, Tensor | None]:
    cost, kept = problem.cost, None
    if not is_zero(problem.warp):
        with_warp, before = warped(problem)
        found, kept = _value(launcher, with_warp, state, before)
        return found.to(cost.dtype), kept
    out = torch.empty(cost.shape[:-2], dtype=cost.dtype, device=cost.device)
    if out.numel():
        few = problem._replace(cost=few_dimensions(cost))
        _, _, kept = run(launcher, 0, few, out, state=state, warped=before)
    return out, kept


def gradient(
    launcher: Launcher,
    problem: PatternProblem,
    grad_value: Tensor,
    with_parameters: bool,
    state: Tensor | None = None,
    before: Warped | None = None,
) -> Four:
    """With a state of the value that is not empty, without sweeping forward. before: see `run`."""
    cost, shape = problem.cost, problem.cost.shape
    if not is_zero(problem.warp):
        wide, (with_warp, before) = grad_value.double(), warped(problem)
        found = gradient(launcher, with_warp, wide, with_parameters, state, before)
        return torch.empty_like(cost).copy_(found[0]), *found[1:]
    few = problem._replace(cost=few_dimensions(cost))
    out = new_like(few.cost, leaves_cells(few.of(few.cost)))
    by_gamma = by_skip = None
    if out.numel():
        given = state if state is not None and state.numel() else None
        rest = (grad_value,), with_parameters, given, before
        by_gamma, by_skip, _ = run(launcher, 1, few, out, *rest)
    by_cost = in_shape(out, shape)
    by_gamma, by_skip = (sum_of_parts(by, shape[:-2], out) for by in (by_gamma, by_skip))
    if not with_parameters:  # which nobody reads
        return by_cost, by_gamma, by_gamma.clone(), by_skip
    # 2 K = steps that repeat + n + m - frames left out, for a path of K pairs; 0 where none is.
    visits = by_cost.sum((-2, -1), dtype=torch.float64)
    by_warp = 2 * visits - problem.frames * grad_value.double() + by_skip
    return by_cost, by_gamma, torch.where(visits == 0, 0, by_warp), by_skip


def path(launcher: Launcher, problem: PatternProblem) -> list[Tensor]:
    """As `lattice.path`: where the gradient at gamma = 0 is."""
    cost = problem.cost.detach()
    hard = problem._replace(cost=cost, gamma=torch.zeros_like(problem.gamma))
    visits = gradient(launcher, hard, cost.new_ones(cost.shape[:-2]), False)[0]
    return [item.nonzero() for item in (visits > 0).reshape(-1, *cost.shape[-2:])]
