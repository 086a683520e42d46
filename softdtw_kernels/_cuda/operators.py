"""The operators on CUDA tensors.

Here is asked which kernels a call goes to: those of `tiny` for many small pairs, those of `lattice`
for all others, those of `features` where no cost is stored, forms of the first two with a
`pattern`. Nothing reads a value from the device: an item whose gamma, dummy cost, price or length
is out of range is NaN.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .._problem import FeatureProblem, PatternProblem, Problem, SmoothedProblem, Smoothing
from . import distances, features, lattice, pattern, smoothing, tiny, warping
from .launcher import launcher_for
from .recipe import Launcher
from .sweeps import no_state


class Operators:
    """A backend, given what launches kernels for a tensor: a GPU, or the emulator of the tests."""

    def __init__(self, launcher_for: Callable[[Tensor], Launcher]) -> None:
        self.launcher_for = launcher_for

    def value(self, problem: Problem) -> Tensor:
        launcher = self.launcher_for(problem.cost)
        if tiny.applies(problem.cost, launcher.multiprocessors):
            return tiny.value(launcher, problem)
        return lattice.value(launcher, problem)

    def gradient(
        self, problem: Problem, grad_value: Tensor, with_parameters: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        cost = problem.cost
        by_cost, *others = self._gradient(problem, grad_value, with_parameters, None)
        by_gamma, by_dummy = (_no_parameter(cost) if by is None else by for by in others)
        return by_cost, by_gamma, by_dummy

    def value_and_state(self, problem: Problem) -> tuple[Tensor, Tensor]:
        """The tiny kernels keep nothing: their gradients go forward in registers."""
        launcher = self.launcher_for(problem.cost)
        if tiny.applies(problem.cost, launcher.multiprocessors):
            return tiny.value(launcher, problem), no_state(problem.cost)
        return lattice.value_and_state(launcher, problem)

    def gradient_from_state(
        self, problem: Problem, state: Tensor, grad_value: Tensor, with_parameters: bool
    ) -> lattice.Gradients:
        return self._gradient(problem, grad_value, with_parameters, state)

    def _gradient(
        self, problem: Problem, grad_value: Tensor, with_parameters: bool, state: Tensor | None
    ) -> lattice.Gradients:
        cost = problem.cost
        launcher = self.launcher_for(cost)
        if not with_parameters and tiny.applies(cost, launcher.multiprocessors):
            return tiny.gradient(launcher, problem, grad_value), None, None
        return lattice.gradient(launcher, problem, grad_value, with_parameters, state)

    def hessian_product(
        self,
        problem: Problem,
        grad_value: Tensor,
        tangent_cost: Tensor,
        tangent_gamma: Tensor,
        tangent_dummy: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        launcher = self.launcher_for(problem.cost)
        tangents = tangent_cost, tangent_gamma, tangent_dummy
        return lattice.hessian_product(launcher, problem, grad_value, *tangents)

    def path(self, problem: Problem) -> list[Tensor]:
        return lattice.path(self.launcher_for(problem.cost), problem)

    def pattern_value(self, problem: PatternProblem) -> Tensor:
        kernels = warping if problem.warps_alone else pattern
        return kernels.value(self.launcher_for(problem.cost), problem)

    def pattern_gradient(
        self, problem: PatternProblem, grad_value: Tensor, with_parameters: bool
    ) -> pattern.Four:
        kernels = warping if problem.warps_alone else pattern
        launcher = self.launcher_for(problem.cost)
        return kernels.gradient(launcher, problem, grad_value, with_parameters)

    def pattern_value_and_state(self, problem: PatternProblem) -> tuple[Tensor, Tensor]:
        kernels = warping if problem.warps_alone else pattern
        return kernels.value_and_state(self.launcher_for(problem.cost), problem)

    def pattern_gradient_from_state(
        self, problem: PatternProblem, state: Tensor, grad_value: Tensor, with_parameters: bool
    ) -> pattern.Four:
        kernels = warping if problem.warps_alone else pattern
        launcher = self.launcher_for(problem.cost)
        return kernels.gradient(launcher, problem, grad_value, with_parameters, state)

    def pattern_hessian_product(
        self,
        problem: PatternProblem,
        grad_value: Tensor,
        tangent_cost: Tensor,
        tangent_gamma: Tensor,
        tangent_warp: Tensor,
        tangent_skip: Tensor,
    ) -> tuple[Tensor, ...]:
        """Of a cost of warping alone; `_operators.pattern` declines what else there is."""
        launcher, tangents = self.launcher_for(problem.cost), (tangent_cost, tangent_gamma)
        return warping.hessian_product(launcher, problem, grad_value, *tangents, tangent_warp)

    def pattern_path(self, problem: PatternProblem) -> list[Tensor]:
        kernels = warping if problem.warps_alone else pattern
        return kernels.path(self.launcher_for(problem.cost), problem)

    def smooth(self, task: Smoothing) -> Tensor:
        return smoothing.smooth(self.launcher_for(task.cost), task)

    def smooth_vjp(self, task: Smoothing, grad_s: Tensor) -> tuple[Tensor, Tensor]:
        return smoothing.smooth_vjp(self.launcher_for(task.cost), task, grad_s)

    def smoothed_value(self, task: SmoothedProblem) -> Tensor:
        launcher = self.launcher_for(task.cost)
        if tiny.applies(task.cost, launcher.multiprocessors):
            return tiny.value(launcher, task.of(task.cost), task.origin_count)
        return lattice.value(launcher, task.of(smoothing.smooth(launcher, task.smoothing)))

    def smoothed_gradient(
        self, task: SmoothedProblem, grad_value: Tensor, with_parameters: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        cost, launcher = task.cost, self.launcher_for(task.cost)
        if not with_parameters and tiny.applies(cost, launcher.multiprocessors):
            by_cost = tiny.gradient(launcher, task.of(cost), grad_value, task.origin_count)
            return by_cost, _no_parameter(cost), _no_parameter(cost)
        problem = task.of(smoothing.smooth(launcher, task.smoothing))
        by_s, by_gamma, by_dummy = lattice.gradient(launcher, problem, grad_value, with_parameters)
        by_cost, by_smoothing = smoothing.smooth_vjp(launcher, task.smoothing, by_s)
        if by_gamma is None or by_dummy is None:
            return by_cost, by_smoothing, _no_parameter(cost)
        return by_cost, by_gamma + by_smoothing, by_dummy

    def squared_distances(self, x: Tensor, y: Tensor) -> Tensor:
        return distances.squared_distances(self.launcher_for(x), x, y)

    def fused_value(self, problem: FeatureProblem) -> Tensor:
        return features.value(self.launcher_for(problem.x), problem)

    def fused_gradient(
        self,
        problem: FeatureProblem,
        grad_value: Tensor,
        with_x: bool,
        with_y: bool,
        with_gamma: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, wanted = problem.x, (with_x, with_y, with_gamma)
        grads = features.gradient(self.launcher_for(x), problem, grad_value, *wanted)
        by_x, by_y, by_gamma = grads
        return by_x, by_y, _no_parameter(x) if by_gamma is None else by_gamma

    def fused_value_and_state(self, problem: FeatureProblem) -> tuple[Tensor, Tensor]:
        return features.value_and_state(self.launcher_for(problem.x), problem)

    def fused_gradient_from_state(
        self,
        problem: FeatureProblem,
        state: Tensor,
        grad_value: Tensor,
        with_x: bool,
        with_y: bool,
        with_gamma: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        wanted = with_x, with_y, with_gamma
        launcher = self.launcher_for(problem.x)
        return features.gradient(launcher, problem, grad_value, *wanted, state)


def _no_parameter(cost: Tensor) -> Tensor:
    """The gradient in gamma or the dummy cost where it is not wanted: anything."""
    return cost.new_empty(cost.shape[:-2], dtype=torch.float64)


OF_GPUS = Operators(launcher_for)
