"""The schedule of a network of diffusers: its own scale, and the timestep of any noise level.

Levels become timesteps as the teacher does it (`teachers.diffusers.schedule`), so that what a solver was fitted with is
what it is played with: log alpha is piecewise linear between the M entries of the network's alphas_cumprod, its end
segments go on past the ends, and nothing is rounded to integers. Where the schedule ends at pure noise (zero terminal
SNR) that is the last timestep. A flow network's timestep is M sigma at alpha + sigma = 1, or M (1 - sigma) of one that
counts the other way round (`invert_sigmas`), whose output is the opposite slope. A v network on continuous timesteps
(Stable Video Diffusion) is told log(sigma / alpha) / 4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from solverdistill.noise.paths import Discrete, Flow, make_path
from solverdistill.support.facts import Facts
from solverdistill.teachers.diffusers.schedule import MAX_STEPS, NO_ODE, Schedule, make_schedule

PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "denoised": "sample", "flow": "flow_prediction"}
SCHEDULE_KEYS = ("beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr", "shift")
SCHEDULE_KEYS += ("snr_shift_scale", "invert_sigmas")


@dataclass(frozen=True)
class NetworkSchedule:
    """What a network of diffusers predicts, and on which schedule.

    Args:
        schedule: The teacher's description of it.
        description: Keys of a scheduler configuration that say the same, for other schedulers.
        inverted: A flow network that is told 1 - sigma and predicts denoised minus noise.
        continuous: A v network that is told log(sigma / alpha) / 4.
    """

    schedule: Schedule
    description: dict[str, Any] = field(default_factory=dict)
    inverted: bool = False
    continuous: bool = False

    @property
    def prediction(self) -> str:
        """What the network predicts, in diffusers' words."""
        return PREDICTIONS[self.schedule.prediction]

    @property
    def steps(self) -> int:
        """Number M of training timesteps."""
        return self.schedule.steps

    @property
    def is_flow(self) -> bool:
        """Whether states have alpha + sigma = 1 instead of alpha^2 + sigma^2 = 1."""
        return self.schedule.prediction == "flow"

    def scale(self, alpha: float, sigma: float) -> float:
        """Factor that brings a state of a level to the network's own scale."""
        return 1 / (alpha + sigma if self.is_flow else math.hypot(alpha, sigma))

    def timestep(self, alpha: float, sigma: float) -> float:
        """Timestep of a level, in the network's own unit; fractional.

        Raises:
            ValueError: alpha is 0, and the network's schedule does not end there.
        """
        if self.is_flow:
            return self.steps * (alpha if self.inverted else sigma) / (alpha + sigma)
        if self.continuous and alpha > 0 < sigma:
            return 0.25 * math.log(sigma / alpha)
        pair = (torch.tensor([value], dtype=torch.float64) for value in (alpha, sigma))
        return float(self.schedule.timestep(*pair))

    def is_inside(self, timestep: float) -> bool:
        """Whether the network was trained around a timestep."""
        if self.continuous:
            return math.isfinite(timestep)
        return (0 if self.is_flow else -0.5) <= timestep <= self.steps - (0 if self.is_flow else 0.5)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> NetworkSchedule:
        """Read the configuration of a pipeline's scheduler.

        Raises:
            ValueError: a network that is not of these kinds.
        """
        description = {key: config[key] for key in SCHEDULE_KEYS if key in config}
        facts = Facts("scheduler_config.json", config)
        name = facts.word("_class_name", "")
        problem = _find_problem(name, config)
        if problem:
            raise ValueError(problem)
        if config.get("prediction_type") == "flow_prediction" or name.startswith("FlowMatch"):
            # shifts, static or dynamic, choose default levels; they do not change what a level is called
            flow = Schedule(Flow(), "flow", facts.count("num_train_timesteps", 1, MAX_STEPS, 1000))
            return cls(flow, description, inverted=facts.flag("invert_sigmas", False))
        continuous = config.get("timestep_type") == "continuous" and config.get("prediction_type") == "v_prediction"
        return cls(make_schedule(config), description, continuous=continuous)

    @classmethod
    def from_teacher(cls, teacher: Mapping[str, Any]) -> NetworkSchedule:
        """Read a teacher's description, as a solver file has it under `provenance.teacher`.

        Raises:
            ValueError: it names no prediction type, or a path without timesteps.
        """
        prediction, described = str(teacher.get("prediction")), teacher.get("path")
        path = make_path(described) if described else None
        if prediction == "flow" and isinstance(path, Flow):
            return cls(Schedule(path, prediction))
        if prediction not in PREDICTIONS or prediction == "flow" or not isinstance(path, Discrete):
            raise ValueError(
                f"the solver file does not say which timesteps its network takes (prediction {prediction!r}, path "
                f"{path and path.name!r}); give the pipeline or its scheduler"
            )
        table = (2 * path.table[1]).exp().tolist()
        betas = [1 - after / before for after, before in zip(table, [1.0, *table[:-1]], strict=True)]
        schedule = Schedule(path, prediction, path.steps, bool(teacher.get("zero_snr", False)))
        return cls(schedule, {"trained_betas": betas})


def _find_problem(name: str, config: Mapping[str, Any]) -> str | None:
    """Say in a sentence why no solver is played in place of a scheduler, or None."""
    if name in NO_ODE:
        return f"the steps of {name} are no steps of an ODE but {NO_ODE[name]}; no solver can take its place"
    if "sigma_data" in config:
        known = ", ".join(PREDICTIONS.values())
        return f"{name or 'the scheduler'} preconditions its network as EDM does; known kinds: {known}"
    if int(config.get("stages", 1)) > 1:
        return f"{name} changes the size of the image between its {config['stages']} stages; no one solver does that"
    return None
