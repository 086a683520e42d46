"""The kernels of source/lattice.cu: a warp or a block for each item, or strips over the device.

Requirements: torch only. Nothing here reads a value of a tensor on the device, so nothing waits for
it. All memory is torch's; what must start at zero is zeroed on the stream. Each call follows a
recipe, made once for its layout. The kernels and their three ways of sharing out the work are
described in source/lattice.cu and source/strip.cuh.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeAlias

import torch
from torch import Tensor

from .._backends import in_shape
from .._problem import Problem
from . import fields
from .fields import (
    RAW,
    Layout,
    Raw,
    RawLayout,
    leaves_cells,
    new_like,
    sum_of_parts,
    with_few_dimensions,
)
from .fixed import FIXED, fixed_plan, fixed_state_plans
from .plan import fast_plan, state_plans
from .recipe import Argument, Device, Launcher, Recipe
from .sweeps import (
    Counters,
    Sweeps,
    add_launch,
    from_state,
    launches_of,
    no_state,
    phases_of,
    sums,
    with_state,
)
from .variants import Shape
from .wide import beside, wide_plan

# By cost, gamma and dummy cost; None where it is not wanted.
Gradients: TypeAlias = tuple[Tensor, Tensor | None, Tensor | None]


def run(
    launcher: Launcher,
    order: int,
    problem: Problem,
    items: tuple[Tensor | None, ...],
    others: Mapping[str, Tensor | None],
    dense: tuple[int, ...] | None = None,
    with_parameters: bool = False,
    state: int | None = None,
    raw: Raw | None = None,
) -> list[Any]:
    """All launches of one call. Returns the derivatives in gamma and dummy, (pairs, parts), and the
    state that a value has kept, each of them None if there is none.

    `items` are those of `fields.ITEMS`; `others` the remaining tensors, by name. A value keeps a
    state if `state` is not None; a gradient then starts from the one among the others, which has so
    many bytes. `raw`: of costs with a cost of warping in them.
    """
    cost = problem.cost
    device = cost.device
    forms, buffers = fields.item_buffers(items, device)
    others = {name: tensor for name, tensor in others.items() if tensor is not None}
    recipe = recipe_of_call(
        *(order, launcher.multiprocessors, launcher.shared_limit, launcher.family),
        *(cost.dtype, cost.shape, cost.stride(), forms, problem.bandwidth, dense),
        *(tuple(others), with_parameters, state, raw and raw.layout),
    )
    more = raw.buffers if raw else ()
    return recipe.follow(launcher, device, (cost, *buffers, *others.values(), *more))


@lru_cache(maxsize=1024)
def recipe_of_call(*call: Any) -> Recipe:
    """That of `run`, by plain fields: to make tuples with names of them takes a call too long."""
    order, (device, layout), rest = call[0], (call[1:4], call[4:10]), call[10:]
    return recipe_of(order, Device(*device), Layout(*layout), *rest)


@lru_cache(maxsize=1024)
def recipe_of(
    order: int,
    device: Device,
    layout: Layout,
    others: tuple[str, ...],
    with_parameters: bool,
    state: int | None,
    raw: RawLayout | None,
) -> Recipe:
    """What `run` does."""
    recipe = layout.recipe(*others, *RAW * (raw is not None))
    buffers = recipe.inputs
    task = layout.batch(buffers)
    fixed, plans = sweeps_in_fixed(recipe, order, device, task.shape, state), None
    # What warps of whole items leave is left to warps; so is what is asked of "fixed" in vain.
    of_device = device._replace(family="warp") if fixed or device.family == FIXED else device
    if state is not None and not fixed:
        plans = state_plans(task.shape, *of_device)
    if state is None or plans is None:
        fast = Sweeps(fast_plan(task.shape, order, *of_device), phases_of(order))
    else:
        fast = with_state(recipe, plans, order, state)
    plan = beside(wide_plan(task.shape, order, device.multiprocessors), fast.plan)
    wide = Sweeps(plan, phases_of(order))
    first = fixed or fast  # the first to see an item; each leaves some to the next
    every = [fixed, fast, wide] if fixed else [fast, wide]
    pairs, parts = task.pairs, max(sweeps.plan.strips for sweeps in every)

    grad_gamma = sums(recipe, pairs, parts, with_parameters)
    grad_dummy = sums(recipe, pairs, parts, with_parameters and task.weak)
    first.returns_state(recipe)
    counters = Counters(recipe, first, pairs)
    shared: dict[str, Argument] = {
        **task.fields,
        **{name: buffers[name] for name in others if name != "state"},
        "grad_gamma": grad_gamma,
        "grad_dummy": grad_dummy,
        "parts": parts,
        "status": counters.status,
        **(raw.of_all(buffers) if raw else {}),
    }
    for plan, launch in launches_of(every, counters, recipe):
        if raw and plan is wide.plan:
            launch |= raw.of_wide(buffers)
        launch["ring_chunks"] = plan.ring_chunks(launch["phases"])
        launch["left_only"] = int(fixed is not None and plan is fast.plan)
        struct = fields.struct("problem.cuh", "SOFTDTW_LATTICE_FIELDS", shared | launch)
        add_launch(recipe, plan, launch["phases"], struct)
    return recipe


def sweeps_in_fixed(
    recipe: Recipe, order: int, device: Device, shape: Shape, state: int | None
) -> Sweeps | None:
    """Of source/fixed.cu, where it takes the call."""
    if state is None:
        plan = fixed_plan(shape, order, *device)
        return Sweeps(plan, phases_of(order)) if plan else None
    plans = fixed_state_plans(shape, *device)
    return with_state(recipe, plans, order, state) if plans else None


def value(launcher: Launcher, problem: Problem, raw: Raw | None = None) -> Tensor:
    return _value(launcher, problem, None, raw)[0]


def value_and_state(
    launcher: Launcher, problem: Problem, raw: Raw | None = None
) -> tuple[Tensor, Tensor]:
    """The value, and what `gradient` may go on with: empty where it would be too large."""
    out, state = _value(launcher, problem, 0, raw)
    return out, no_state(out) if state is None else state


def _value(
    launcher: Launcher, problem: Problem, state: int | None, raw: Raw | None
) -> tuple[Tensor, Tensor | None]:
    """`state` and `raw` as in `run`."""
    cost = problem.cost
    out = torch.empty(cost.shape[:-2], dtype=cost.dtype, device=cost.device)
    kept = None
    if out.numel():
        problem = with_few_dimensions(problem)
        items = fields.items_of(problem)
        _, _, kept = run(launcher, 0, problem, items, {"value": out}, state=state, raw=raw)
    return out, kept


def gradient(
    launcher: Launcher,
    problem: Problem,
    grad_value: Tensor,
    with_parameters: bool,
    state: Tensor | None = None,
    raw: Raw | None = None,
) -> Gradients:
    """With a state of the value that is not empty, without sweeping forward."""
    shape, problem = problem.cost.shape, with_few_dimensions(problem)
    out = new_like(problem.cost, leaves_cells(problem))
    in_gamma = in_dummy = None
    if out.numel():
        kept, size = from_state(state)
        others, items = {"grad_cost": out, **kept}, fields.items_of(problem, grad_value)
        rest = out.stride(), with_parameters, size, raw
        in_gamma, in_dummy, _ = run(launcher, 1, problem, items, others, *rest)
    by_cost = in_shape(out, shape)
    if not with_parameters:
        return by_cost, None, None
    by_gamma, by_dummy = (sum_of_parts(by, shape[:-2], out) for by in (in_gamma, in_dummy))
    return by_cost, by_gamma, by_dummy


def hessian_product(
    launcher: Launcher,
    problem: Problem,
    grad_value: Tensor,
    tangent_cost: Tensor,
    tangent_gamma: Tensor,
    tangent_dummy: Tensor | None,
    raw: Raw | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shape, problem = problem.cost.shape, with_few_dimensions(problem)
    cost = problem.cost
    out = new_like(cost, leaves_cells(problem))
    tangent_value = cost.new_empty(shape[:-2])
    in_gamma = in_dummy = None
    if out.numel():
        if problem.dummy is not None and tangent_dummy is None:
            tangent_dummy = cost.new_zeros(shape[:-2], dtype=torch.float64)
        others = {
            "grad_cost": out,
            "tangent_value": tangent_value,
            "tangent_cost": fields.with_strides_of(out, tangent_cost),
            "tangent_gamma": tangent_gamma.contiguous(),
            "tangent_dummy": None if tangent_dummy is None else tangent_dummy.contiguous(),
        }
        items = fields.items_of(problem, grad_value)
        rest = out.stride(), True, None, raw
        in_gamma, in_dummy, _ = run(launcher, 2, problem, items, others, *rest)
    return (
        tangent_value,
        in_shape(out, shape),
        sum_of_parts(in_gamma, shape[:-2], cost),
        sum_of_parts(in_dummy, shape[:-2], cost),
    )


def path(launcher: Launcher, problem: Problem, raw: Raw | None = None) -> list[Tensor]:
    """Where the gradient at gamma = 0 is 1; of a weak lattice the real pairs among them.

    Rows and columns of a path only grow, so row-major order is its order. Waits for the device, as
    the length of a path is not known before.
    """
    cost = problem.cost
    ones = cost.new_ones(cost.shape[:-2])
    hard = problem._replace(gamma=cost.new_zeros(cost.shape[:-2], dtype=torch.float64))
    visits, _, _ = gradient(launcher, hard, ones, False, raw=raw)
    return [item.nonzero() for item in (visits > 0).reshape(-1, *cost.shape[-2:])]
