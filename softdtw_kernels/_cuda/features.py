"""Soft-DTW from features on CUDA tensors: what the host does for source/features.cu.

Requirements: torch only. As `_cuda_host`, with whose launchers these functions run: nothing waits
for the device. Neither the costs nor their gradient are ever in memory; what is kept between the
sweeps is about 1 byte a cell in float32 (3 in float64) of at most as many items as run at once. A
value that keeps this for its gradient to come (`_cuda_host`) does so if it is no more than that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._checks import is_distance
from . import lattice as host
from .plan import (
    BACKWARD,
    LANES,
    WIDE_SCRATCH_BYTES,
    WIDE_SHARE_OF_COST,
    Argument,
    Batch,
    Plan,
    Shape,
    StatePlans,
    Variant,
    c_type,
    ceil_divide,
    in_groups,
    total,
)
from .recipe import Recipe

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


def plan_of(task: Batch, variant: FeatureVariant, multiprocessors: int) -> FeaturePlan:
    """Of the families of `_cuda_plan`, long or (a block for a warp) warp."""
    return plan_of_shape(task.shape, variant, multiprocessors)


@lru_cache(maxsize=1024)
def plan_of_shape(shape: Shape, variant: FeatureVariant, multiprocessors: int) -> FeaturePlan:
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


def state_plans(
    task: Batch, dtype: torch.dtype, distance: bool, multiprocessors: int
) -> StatePlans | None:
    """Of a value that keeps its state and of the gradient from it; None if that takes more memory
    than a gradient without: from features there is no cost to compare it with.
    """
    forward, backward = (
        plan_of(task, FeatureVariant(dtype, False, distance, order), multiprocessors)
        for order in (0, 1)
    )
    plans = StatePlans(*(replace(plan, kept_items=task.pairs) for plan in (forward, backward)))
    return plans.within(total(backward.swept_bytes | {"status": 4 * task.pairs}))


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
        f"{prefix}_{name}": s // length for name, s in zip(host.STRIDES[:-1], given, strict=True)
    }


class Problem(NamedTuple):
    """The arguments of a call; x (*, N, D) and y (*, M, D) have equal leading dimensions."""

    x: Tensor
    y: Tensor
    gamma: Tensor
    x_lengths: Tensor | None
    y_lengths: Tensor | None
    bandwidth: int | None
    kind: str  # of checks.KINDS


def run(
    launcher: host.Launcher,
    problem: Problem,
    order: int,
    grad_value: Tensor | None,
    others: dict[str, Tensor],
    with_gamma: bool,
    state: int | None = None,
) -> list[Any]:
    """All launches of one call. Returns the derivative in gamma, (pairs, parts), and the state that
    a value has kept; `others` and `state` as those of `_cuda_host.run_lattice`.
    """
    x, y = packed(host.few_dimensions(problem.x)), packed(host.few_dimensions(problem.y))
    items = [problem.gamma, None, problem.x_lengths, problem.y_lengths]
    if grad_value is not None:
        items.append(grad_value)
    forms, buffers = host.item_buffers(items, x.device)
    recipe = recipe_of(
        order,
        launcher.multiprocessors,
        is_distance(problem.kind),
        x.dtype,
        x.shape,
        x.stride(),
        y.shape[-2],
        y.stride(),
        forms,
        problem.bandwidth,
        tuple(others),
        with_gamma,
        state,
    )
    return recipe.follow(launcher, x.device, (x, y, *buffers, *others.values()))


@lru_cache(maxsize=1024)
def recipe_of(
    order: int,
    multiprocessors: int,
    distance: bool,
    dtype: torch.dtype,
    x_shape: torch.Size,
    x_stride: tuple[int, ...],
    columns: int,
    y_stride: tuple[int, ...],
    forms: tuple[str, ...],
    bandwidth: int | None,
    others: tuple[str, ...],
    with_gamma: bool,
    state: int | None,
) -> Recipe:
    """What `run` does with x and y in whole packs."""
    recipe = Recipe("x", "y", *host.ITEMS[: len(forms)], *others)
    buffers = recipe.inputs
    shape_of_cost = (*x_shape[:-1], columns)  # which has no memory
    cost = host.without_memory(dtype, shape_of_cost, (0,) * len(shape_of_cost))
    task = host.batch(cost, None, forms, bandwidth, {**buffers, "cost": None})
    pairs = task.pairs
    forms_here = [FeatureVariant(dtype, wide, distance, order) for wide in (False, True)]
    fast, wide = (
        host.Sweeps(plan_of(task, form, multiprocessors), host.phases_of(order))
        for form in forms_here
    )
    if state is not None:
        plans = state_plans(task, dtype, distance, multiprocessors)
        fast = fast if plans is None else host.with_state(recipe, plans, order, state)
    parts = max(fast.plan.strips, wide.plan.strips)
    grad_gamma = host.sums(recipe, pairs, parts, with_gamma)
    fast.returns_state(recipe)
    counters = host.Counters(recipe, fast.plan, pairs, fast.kept.get("status"), progresses=3)
    # The wide launch comes when the fast ones are done with the scratch memory.
    scratch = recipe.scratch(max(fast.plan.total_bytes, wide.plan.total_bytes))
    fields: dict[str, Argument] = {
        **task.fields,
        **{name: buffers[name] for name in ("x", "y", *others) if name != "state"},
        "grad_gamma": grad_gamma,
        "parts": parts,
        "status": counters.status,
        **pack_strides("x", x_stride, dtype.itemsize),
        **pack_strides("y", y_stride, dtype.itemsize),
        "packs": x_shape[-1] * dtype.itemsize // PACK_BYTES,
    }
    names = host.field_names("problem.cuh", "SOFTDTW_LATTICE_FIELDS")
    names += host.own_field_names("features.cuh", "SOFTDTW_FEATURE_FIELDS")
    for plan, launch in host.launches_of(fast, wide, counters, scratch):
        form = forms_here[plan.variant.wide]
        if plan.by_ticket:
            launch["grad_x_progress"] = counters.progress(2)
        recipe.launch(
            "features",
            form.options,
            plan.warps,
            WARPS * LANES,
            form.shared_bytes(launch["phases"]),
            host.in_order(names, fields | launch),
        )
    return recipe


def value(launcher: host.Launcher, problem: Problem) -> Tensor:
    return run_value(launcher, problem, None)[0]


def value_and_state(launcher: host.Launcher, problem: Problem) -> tuple[Tensor, Tensor]:
    """The value, and what `gradient` may go on with: empty where it would be too large."""
    out, state = run_value(launcher, problem, 0)
    return out, host.no_state(out) if state is None else state


def run_value(
    launcher: host.Launcher, problem: Problem, state: int | None
) -> tuple[Tensor, Tensor | None]:
    """`state` as in `run`."""
    x = problem.x
    out, kept = x.new_empty(x.shape[:-2]), None
    if out.numel():
        _, kept = run(launcher, problem, 0, None, {"value": out}, False, state)
    return out, kept


def gradient(
    launcher: host.Launcher,
    problem: Problem,
    grad_value: Tensor,
    with_x: bool,
    with_y: bool,
    with_gamma: bool,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
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
        others, size = host.from_state(state)
        if with_x:
            others["grad_x"] = by_x
        if with_y:
            others["grad_y"] = by_y
        in_gamma, _ = run(launcher, problem, 1, grad_value, others, with_gamma, size)
    return (
        unpacked(by_x, x.shape[-1]),
        unpacked(by_y, y.shape[-1]),
        host.sum_of_parts(in_gamma, x.shape[:-2], x, with_gamma),
    )
