"""The kernels of source/features.cu: soft-DTW from features.

Requirements: torch only. Nothing here waits for the device. Neither the costs nor their gradient
are ever in memory. What is kept between the sweeps is about 1 byte a cell in float32 (3 in float64)
of at most as many items as run at once. A value keeps this for its gradient to come if that is no
more than so much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._checks import is_distance
from .._problem import FeatureProblem
from . import fields
from .fields import Layout, few_dimensions, sum_of_parts
from .plan import Plan, StatePlans, total
from .recipe import Argument, Launcher, Recipe
from .sweeps import (
    Counters,
    Sweeps,
    from_state,
    launches_of,
    no_state,
    phases_of,
    sums,
    with_state,
)
from .variants import BACKWARD, LANES, Shape, Variant, c_type, ceil_divide
from .wide import WIDE_SCRATCH_BYTES, WIDE_SHARE_OF_COST, beside, in_groups

# As in source/features.cuh.
PACK_BYTES, STAGE_PACKS, WORKERS = 16, 4, 4
WARPS = 1 + WORKERS  # of a block

# Columns a lane and steps a tile. One column makes the most strips, and so the most blocks for a
# few long items; what is left of shared memory decides about the steps.
COLUMNS, WIDE_COLUMNS = 1, 4
TILE_STEPS = {torch.float32: 32, torch.float64: 16}
WIDE_TILE_STEPS = 256
# What the shared memory of an H100 or H200 and 96 registers a thread have room for.
BLOCKS_ON_MULTIPROCESSOR = 4
TICKET_BYTES = 16


@dataclass(frozen=True)
class FeatureVariant:
    """One compiled form of features.cu; see the list of macros there."""

    dtype: torch.dtype
    wide: bool
    distance: bool
    order: int

    @property
    def strip(self) -> Variant:
        """What its sweeps have in common with those of a cost matrix."""
        columns = WIDE_COLUMNS if self.wide else COLUMNS
        return Variant(self.dtype, self.wide, columns, False, self.order)

    @property
    def width(self) -> int:
        return LANES * self.strip.columns

    @property
    def tile_steps(self) -> int:
        return WIDE_TILE_STEPS if self.wide else TILE_STEPS[self.dtype]

    @property
    def stage_bytes(self) -> int:
        few = 8 if self.dtype == torch.float32 else 4
        return WORKERS * (LANES + few) * (STAGE_PACKS + 1) * PACK_BYTES

    @property
    def ring_bytes(self) -> int:
        chunks = ceil_divide(LANES, self.tile_steps) + 3
        return chunks * self.tile_steps * (self.width * self.dtype.itemsize + PACK_BYTES)

    @property
    def options(self) -> tuple[str, ...]:
        return (
            f"-DWITH_COST={c_type(self.dtype)}",
            f"-DWITH_WIDE={int(self.wide)}",
            f"-DWITH_COLUMNS={self.strip.columns}",
            f"-DWITH_TILE_STEPS={self.tile_steps}",
            f"-DWITH_DISTANCE={int(self.distance)}",
            f"-DWITH_ORDER={self.order}",
            f"-DWITH_NODE_BYTES={self.strip.node_bytes}",
            f"-DWITH_FLOW_BYTES={self.strip.flow_bytes}",
            f"-DWITH_STAGE_BYTES={self.stage_bytes}",
            f"-DWITH_RING_BYTES={self.ring_bytes}",
        )

    def shared_bytes(self, phases: int) -> int:
        """Of a block."""
        fixed = TICKET_BYTES + self.stage_bytes
        if self.wide:
            return fixed
        tile = self.tile_steps * self.strip.step_bytes if phases & BACKWARD and self.order else 0
        return fixed + self.ring_bytes + tile


def variants() -> list[FeatureVariant]:
    """Every form of features.cu that a call can ask for."""
    return [
        FeatureVariant(dtype, wide, distance, order)
        for dtype in (torch.float32, torch.float64)
        for wide in (False, True)
        for distance in (False, True)
        for order in (0, 1)
    ]


@dataclass(frozen=True)
class FeaturePlan(Plan):
    """A plan whose warps are blocks, and whose wide form has its rings in global memory too."""

    ring_bytes: int = 0

    @cached_property
    def scratch_bytes(self) -> dict[str, int]:
        rings = self.variant.wide * self.warps * self.ring_bytes
        return {**super().scratch_bytes, "rings": rings}


@lru_cache(maxsize=1024)
def plan_of(shape: Shape, variant: FeatureVariant, multiprocessors: int) -> FeaturePlan:
    """Of the families of `plan`, long or (a block for a warp) warp."""
    strips, span = ceil_divide(shape.m, variant.width), shape.span(variant.width)

    def plan(family: str, blocks: int, slots: int) -> FeaturePlan:
        sizes = variant.strip, family, blocks, 1, variant.tile_steps, strips, span, slots
        return FeaturePlan(*sizes, ring_bytes=variant.ring_bytes)

    at_once = multiprocessors * BLOCKS_ON_MULTIPROCESSOR
    if variant.wide:
        budget = max(WIDE_SCRATCH_BYTES, int(WIDE_SHARE_OF_COST * shape.cost_bytes))
        one = in_groups(plan("warp", 1, 1))
        blocks = max(1, min(shape.pairs, at_once, budget // one.total_bytes))
        return replace(one, warps=blocks, slots=blocks)
    if strips > 1 and shape.pairs < at_once and shape.pairs * strips < 2**31:
        return plan("long", shape.pairs * strips, shape.pairs)
    blocks = min(shape.pairs, at_once)
    return plan("warp", blocks, blocks)


def state_plans(shape: Shape, distance: bool, multiprocessors: int) -> StatePlans | None:
    """Of a value that keeps its state and of the gradient from it; None if that takes more memory
    than a gradient without: from features there is no cost to compare it with.
    """
    forward, backward = (
        plan_of(shape, FeatureVariant(shape.dtype, False, distance, order), multiprocessors)
        for order in (0, 1)
    )
    plans = StatePlans(*(replace(plan, kept_items=shape.pairs) for plan in (forward, backward)))
    return plans.within(total(backward.swept_bytes | {"status": 4 * shape.pairs}))


def packed(x: Tensor) -> Tensor:
    """x (*, n, D) in whole packs of 16 bytes, zeros behind the features: x itself or a copy."""
    length = PACK_BYTES // x.element_size()
    in_packs = x.shape[-1] % length == 0 and all(s % length == 0 for s in x.stride()[:-1])
    if in_packs and x.stride(-1) == 1 and x.data_ptr() % PACK_BYTES == 0:
        return x
    copy = x.new_zeros(*x.shape[:-1], length * ceil_divide(x.shape[-1], length))
    copy[..., : x.shape[-1]] = x
    return copy


def unpacked(x: Tensor, features: int) -> Tensor:
    """So many features of whole packs: x itself or a copy, never a view."""
    return x if x.shape[-1] <= features else x[..., :features].contiguous()


def pack_strides(prefix: str, stride: tuple[int, ...], itemsize: int) -> dict[str, Argument]:
    length = PACK_BYTES // itemsize
    given = (0,) * (5 - len(stride)) + stride[:-1]
    return {
        f"{prefix}_{name}": s // length for name, s in zip(fields.STRIDES[:-1], given, strict=True)
    }


class FeatureLayout(NamedTuple):
    """As `fields.Layout`, of x and y in whole packs."""

    dtype: torch.dtype
    x_shape: torch.Size
    x_stride: tuple[int, ...]
    columns: int
    y_stride: tuple[int, ...]
    distance: bool
    forms: tuple[str, ...]
    bandwidth: int | None

    @property
    def of_cost(self) -> Layout:
        """Of a cost that has no memory."""
        shape = torch.Size((*self.x_shape[:-1], self.columns))
        return Layout(self.dtype, shape, (0,) * len(shape), self.forms, self.bandwidth)


def run(
    launcher: Launcher,
    order: int,
    problem: FeatureProblem,
    grad_value: Sequence[Tensor],
    others: dict[str, Tensor],
    with_gamma: bool = False,
    state: int | None = None,
) -> list[Any]:
    """All launches of one call. Returns the derivative in gamma, (pairs, parts), and the state that
    a value has kept; `others` and `state` as those of `lattice.run`.
    """
    x, y = packed(few_dimensions(problem.x)), packed(few_dimensions(problem.y))
    items = problem.gamma, None, problem.x_lengths, problem.y_lengths, *grad_value
    forms, buffers = fields.item_buffers(items, x.device)
    layout = FeatureLayout(
        x.dtype,
        x.shape,
        x.stride(),
        y.shape[-2],
        y.stride(),
        is_distance(problem.kind),
        forms,
        problem.bandwidth,
    )
    recipe = recipe_of(order, launcher.multiprocessors, layout, tuple(others), with_gamma, state)
    return recipe.follow(launcher, x.device, (x, y, *buffers, *others.values()))


@lru_cache(maxsize=1024)
def recipe_of(
    order: int,
    multiprocessors: int,
    layout: FeatureLayout,
    others: tuple[str, ...],
    with_gamma: bool,
    state: int | None,
) -> Recipe:
    """What `run` does."""
    of_cost, dtype = layout.of_cost, layout.dtype
    recipe = of_cost.recipe(*others, first=("x", "y"))
    buffers = recipe.inputs
    task = of_cost.batch(buffers)
    pairs = task.pairs
    forms_here = [FeatureVariant(dtype, wide, layout.distance, order) for wide in (False, True)]
    plans_here = [plan_of(task.shape, form, multiprocessors) for form in forms_here]
    fast = Sweeps(plans_here[0], phases_of(order))
    if state is not None:
        plans = state_plans(task.shape, layout.distance, multiprocessors)
        fast = fast if plans is None else with_state(recipe, plans, order, state)
    wide = Sweeps(beside(plans_here[1], fast.plan), phases_of(order))
    parts = max(fast.plan.strips, wide.plan.strips)
    grad_gamma = sums(recipe, pairs, parts, with_gamma)
    fast.returns_state(recipe)
    counters = Counters(recipe, fast, pairs, progresses=3)
    given: dict[str, Argument] = {
        **task.fields,
        **{name: buffers[name] for name in ("x", "y", *others) if name != "state"},
        "grad_gamma": grad_gamma,
        "parts": parts,
        "status": counters.status,
        **pack_strides("x", layout.x_stride, dtype.itemsize),
        **pack_strides("y", layout.y_stride, dtype.itemsize),
        "packs": layout.x_shape[-1] * dtype.itemsize // PACK_BYTES,
    }
    names = fields.field_names("problem.cuh", "SOFTDTW_LATTICE_FIELDS")
    names += fields.own_field_names("features.cuh", "SOFTDTW_FEATURE_FIELDS")
    for plan, launch in launches_of((fast, wide), counters, recipe):
        form = forms_here[plan.variant.wide]
        if plan.by_ticket:
            launch["grad_x_progress"] = counters.progress(2)
        recipe.launch(
            "features",
            form.options,
            plan.warps,
            WARPS * LANES,
            form.shared_bytes(launch["phases"]),
            fields.in_order(names, given | launch),
        )
    return recipe


def value(launcher: Launcher, problem: FeatureProblem) -> Tensor:
    return _value(launcher, problem, None)[0]


def value_and_state(launcher: Launcher, problem: FeatureProblem) -> tuple[Tensor, Tensor]:
    """The value, and what `gradient` may go on with: empty where it would be too large."""
    out, state = _value(launcher, problem, 0)
    return out, no_state(out) if state is None else state


def _value(
    launcher: Launcher, problem: FeatureProblem, state: int | None
) -> tuple[Tensor, Tensor | None]:
    """`state` as in `run`."""
    x = problem.x
    out, kept = x.new_empty(x.shape[:-2]), None
    if out.numel():
        _, kept = run(launcher, 0, problem, (), {"value": out}, state=state)
    return out, kept


def gradient(
    launcher: Launcher,
    problem: FeatureProblem,
    grad_value: Tensor,
    with_x: bool,
    with_y: bool,
    with_gamma: bool,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """In x and y, without any feature where it is not wanted, and gamma, which may then hold
    anything. With a state of the value that is not empty, without sweeping forward.
    """
    x, y = problem.x, problem.y
    length = PACK_BYTES // x.element_size()
    whole = length * ceil_divide(x.shape[-1], length)
    # Zeros at first: strips add to them, and padding keeps them.
    by_x = x.new_zeros(*x.shape[:-1], whole if with_x else 0)
    by_y = y.new_zeros(*y.shape[:-1], whole if with_y else 0)
    in_gamma = None
    if x.shape[:-2].numel():
        others, size = from_state(state)
        if with_x:
            others["grad_x"] = by_x
        if with_y:
            others["grad_y"] = by_y
        in_gamma, _ = run(launcher, 1, problem, (grad_value,), others, with_gamma, size)
    return (
        unpacked(by_x, x.shape[-1]),
        unpacked(by_y, y.shape[-1]),
        sum_of_parts(in_gamma, x.shape[:-2], x) if with_gamma else None,
    )
