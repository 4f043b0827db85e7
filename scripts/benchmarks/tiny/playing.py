"""How exactly a pipeline plays: against its own scheduler, and against `sample` with its own network.

*Its own scheduler*: the scheduler that came with the pipeline, at first order where it has an order, makes a few steps.
The levels it took are read off it afterwards, the table of Euler's method on them is built, and the pipeline plays that
table. Both must give the same latents, so that timesteps, signs, shifts and the start are those of the pipeline itself
and not what this package believes of it.

*`sample`*: the executor of this package runs in a thread and asks for denoised estimates; the pipeline, in its own
loop, evaluates its guided network for it. So a table with parallel points and memory is compared with its definition.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
import warnings
from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from solverdistill import Grid, families, sample
from solverdistill.consumers.diffusers import LearnedSolverScheduler
from solverdistill.consumers.diffusers_config import find_network, replaced_config, scheduler_config
from solverdistill.programs.program import SolverProgram

from .making import Tiny

KNOWN = ("this solver starts from", "the solver asks for timestep", "this solver was fitted")


def relative_error(value: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest value that is expected."""
    return float((value.double() - expected.double()).abs().max() / expected.double().abs().max())


def against_own(made: Tiny, steps: int = 4) -> float:
    """Error of Euler's table on the levels of the pipeline's own scheduler against that scheduler.

    Raises:
        ValueError: the pipeline's scheduler is refused.
    """
    pipe = made.pipe
    find_network(pipe, None)
    pipe.scheduler = first_order(pipe.scheduler)
    expected = made.run(steps)
    own = pipe.scheduler
    try:
        pipe.scheduler = make_scheduler(euler_table(own), made)
        return relative_error(made.run(steps), expected)
    finally:
        pipe.scheduler = own


def against_sample(made: Tiny, family: str = "epd", steps: int = 2) -> float:
    """Error of a table of a learned family against `sample`, both with the pipeline's guided network."""
    pipe, own = made.pipe, made.pipe.scheduler
    program = learned_table(family, find_network(pipe, None).is_flow, steps)
    try:
        pipe.scheduler = make_scheduler(program, made)
        played = made.run(program.nfe)
        pipe.scheduler = own
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipe.scheduler = Asking(program, own)
        return relative_error(played, made.run(program.nfe))
    finally:
        pipe.scheduler = own


def make_scheduler(program: SolverProgram, made: Tiny) -> LearnedSolverScheduler:
    with warnings.catch_warnings():
        for sentence in KNOWN:
            warnings.filterwarnings("ignore", sentence)
        return LearnedSolverScheduler.from_solver(program, made.pipe)


def learned_table(family: str, is_flow: bool, steps: int) -> SolverProgram:
    """A table of a family that no classical solver has."""
    if is_flow:
        path, grid = "flow", Grid(kind="flow_shift", steps=steps, start=1.0, end=0.05, shift=3.0)
    else:
        path, grid = "vp", Grid(kind="time_uniform", steps=steps, start=0.98, end=0.02)
    options: dict[str, Any] = {"points": 2} if family == "epd" else {}
    built = families.build(family, grid, path, **options)
    return built.program(built.init(1)).detach()


def first_order(scheduler: Any) -> Any:
    """A scheduler of the same class that steps as Euler's method (DDIM) does."""
    config, name = scheduler.config, type(scheduler).__name__
    if name.startswith("UniPC"):
        return type(scheduler).from_config(config, solver_order=1, disable_corrector=list(range(100)))
    if name.startswith("DPMSolverMultistep"):
        return type(scheduler).from_config(config, solver_order=1, final_sigmas_type="zero")
    if name.startswith("Helios"):
        return type(scheduler).from_config(config, scheduler_type="euler")
    return scheduler


def own_levels(scheduler: Any) -> tuple[list[float], float]:
    """The levels sigma / (alpha + sigma) that a scheduler took, down to 0; and its first state for unit noise.

    The first state is in the scale where alpha^2 + sigma^2 = 1, or alpha + sigma = 1 for flow models.
    """
    config, name = scheduler.config, type(scheduler).__name__
    if getattr(scheduler, "sigmas", None) is None:
        squares = scheduler.alphas_cumprod.double()[scheduler.timesteps.cpu().long()].clamp(0, 1)
        alpha, sigma = squares.sqrt(), (1 - squares).sqrt()
        return [*(sigma / (alpha + sigma)).tolist(), 0.0], 1.0
    sigmas = scheduler.sigmas.double().flatten().cpu()
    is_flow = name.startswith("FlowMatch") or config.get("use_flow_sigmas") or name.startswith("Helios")
    if is_flow and float(sigmas.max()) <= 1.5:
        levels = (1 - sigmas if config.get("invert_sigmas") else sigmas).tolist()
        return [*levels[:-1], 0.0], 1.0
    first = 1.0
    if name.startswith("Euler"):  # the others start from unit noise in the scale of the network
        first = float(scheduler.init_noise_sigma) / float((1 + sigmas[0] ** 2).sqrt())
    return [*(sigmas[:-1] / (1 + sigmas[:-1])).tolist(), 0.0], first


def euler_table(scheduler: Any) -> SolverProgram:
    """Euler's method on the levels that a scheduler took in its last run."""
    levels, first = own_levels(scheduler)
    built = families.build("ddim", levels, "flow")
    program = built.program(built.init(0)).detach()
    network = find_network(scheduler, None)
    native = float(program.A[0, 0]) * network.scale(float(program.alpha[0]), float(program.sigma[0]))
    return dataclasses.replace(program, A=program.A * (first / native))


class ChangedBetweenStepsError(Exception):
    """The pipeline hands back another state than it was given, so that `sample` has nothing to be compared with."""


class Asking(LearnedSolverScheduler):
    """A scheduler behind which `sample` runs: every step answers one question of it for a denoised estimate."""

    def __init__(self, program: SolverProgram, own: Any) -> None:
        super().__init__(**scheduler_config(program, own))
        replaced = replaced_config(own)
        self.register_to_config(**{key: value for key, value in replaced.items() if key not in self.config})
        self.network, self.program, self.run = find_network(own, None), program, None

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Any = None,
        timesteps: Any = None,
        mu: float | None = None,
    ) -> None:
        super().set_timesteps(num_inference_steps, device, sigmas, timesteps, mu)
        self.run = None

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True, **_: Any) -> Any:
        dtype = torch.promote_types(sample.dtype, torch.float32)
        if self.run is None:
            self.run = Conversation(self.program, self.network, sample.to(dtype).clone())
        elif relative_error(sample, self.run.question.to(sample.dtype)) > 1e-6:
            raise ChangedBetweenStepsError
        previous = self.run.answer(model_output.to(dtype)).to(sample.dtype, copy=True)
        return SchedulerOutput(prev_sample=previous) if return_dict else (previous, previous)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        return sample


class Conversation:
    """`sample` in a thread of its own, which waits for the network's outputs.

    Args:
        program: What is played.
        network: What the network predicts.
        noise: What `sample` begins with.
    """

    def __init__(self, program: SolverProgram, network: Any, noise: Tensor) -> None:
        self.network, self.asked, self.given = network, queue.Queue(), queue.Queue()
        self.noise, self.program = noise, program
        threading.Thread(target=self._play, daemon=True).start()
        self.question = self._next()

    def answer(self, output: Tensor) -> Tensor:
        """Hand over the network's output at the last question; the next question, or the sample."""
        self.given.put(output)
        self.question = self._next()
        return self.question

    def _next(self) -> Tensor:
        value = self.asked.get()
        if isinstance(value, BaseException):
            raise value
        return value

    def _play(self) -> None:
        try:
            with torch.no_grad():
                self.asked.put(sample(self.program, self._denoise, self.noise, stage_batch=len(self.noise)))
        except Exception as error:
            self.asked.put(error)

    def _denoise(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        scale = self.network.scale(float(alpha[0]), float(sigma[0]))
        a, s, x = float(alpha[0]) * scale, float(sigma[0]) * scale, x * scale
        self.asked.put(x)
        output = self.given.get()
        prediction = self.network.prediction
        if prediction == "sample":
            return output
        if prediction == "epsilon":
            return (x - s * output) / a
        if prediction == "v_prediction":
            return a * x - s * output
        return x + s * output if getattr(self.network, "inverted", False) else x - s * output
