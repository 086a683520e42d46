"""What the launches of one call share: sweeps forward and backward in two arithmetics, the counters
that warps wait on, and the state between a value and its gradient.

Requirements: torch only. `lattice` and `features` make their recipes of these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .plan import Plan, StatePlans, divide, total
from .recipe import Recipe, round_up
from .variants import BACKWARD, FORWARD, LANES, ceil_divide


class Counters:
    """What the warps of a call share: a status for each item, unless a state has it, and, where
    strips wait for each other, two tickets and for each strip the progress of its forward sweep,
    its backward sweep and, if asked for, of one thing more; and all memory of the plan that is 0
    at first.

    Zeros where several warps have an item; else its warp writes the status before anybody reads it.
    """

    def __init__(self, recipe: Recipe, fast: Sweeps, pairs: int, progresses: int = 2) -> None:
        plan = fast.plan
        self.strips = pairs * plan.strips * plan.by_ticket
        zeroed = plan.family != "warp"
        self.status = fast.kept.get("status")
        if self.status is None:
            self.status = recipe.scratch(pairs, torch.int32, zeroed)
        self.place: Any = None
        if plan.by_ticket:
            self.place = recipe.scratch(2 + progresses * self.strips, torch.int32, zeroed)

        self.memory = recipe.scratch(total(plan.zeroed_bytes), zeroed=True)
        self.zeroed = divide(self.memory, plan.zeroed_bytes)

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
            | self.zeroed
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
    zeroed = ("borders",) * plans.forward.handed + ("status",) * (plans.forward.family != "warp")
    zeros = sum(round_up(plans.state_bytes[name]) for name in zeroed)
    make = partial(empty_but, zeros) if zeros else torch.empty
    return Sweeps(plans.forward, FORWARD, recipe.output(size, dtype=torch.uint8, make=make))


def empty_but(zeros: int, size: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """As torch.empty, with so many zeros at the end."""
    memory = torch.empty(size, dtype=dtype, device=device)
    memory[-zeros:].zero_()
    return memory


def launches_of(
    every: Sequence[Sweeps], counters: Counters, recipe: Recipe
) -> Iterator[tuple[Plan, dict[str, Any]]]:
    """All of a call, the wide one last, with the fields that are theirs."""
    # Launches come when those before are done with their memory, whichever is enough.
    *fast, wide = every
    unset = max(total(sweeps.plan.unset_bytes) for sweeps in fast)
    fits = wide.plan.total_bytes <= total(fast[0].plan.zeroed_bytes)
    scratch = recipe.scratch(unset if fits else max(unset, wide.plan.total_bytes))
    for sweeps in every:
        place = counters.memory if sweeps is wide and fits else scratch
        plan = sweeps.plan
        memory = sweeps.kept | divide(place, plan.unset_bytes)
        for launch in counters.launches(plan, sweeps.phases):
            yield plan, memory | plan.sizes | launch


def add_launch(recipe: Recipe, plan: Plan, phases: int, struct: Sequence[Any]) -> None:
    """One of the warps of a plan."""
    recipe.launch(
        plan.variant.source,
        plan.variant.options,
        ceil_divide(plan.warps, plan.warps_in_block),
        plan.warps_in_block * LANES,
        plan.shared_bytes(phases),
        struct,
    )


def from_state(state: Tensor | None) -> tuple[dict[str, Tensor], int | None]:
    """What a gradient adds to its other tensors, and the size; nothing for an empty state."""
    return ({}, None) if state is None or not state.numel() else ({"state": state}, state.numel())


def no_state(like: Tensor) -> Tensor:
    return like.new_empty(0, dtype=torch.uint8)
