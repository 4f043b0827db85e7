"""`LearnedSolverScheduler`: any solver of this package as a scheduler of diffusers, for its pipelines as they are.

    import solverdistill.consumers.diffusers as consumer
    pipe.scheduler = consumer.LearnedSolverScheduler.from_solver("solver.json", pipe)
    image = pipe(prompt, num_inference_steps=pipe.scheduler.nfe).images[0]

A solver is a table (rows ``x_k = A_k z + sum_{j<k} B_kj denoised_j`` and a last row, the sample), and the loop of a
pipeline calls the network once per entry of `timesteps`. So one entry is one evaluation, `step` turns the network's
output into denoised_k and returns the next row, and `order` is 1. Evaluations that could run in parallel are played one
after the other; the result is the same.

Rows live in the scale that the network itself expects, so that pipelines which never call `scale_model_input` are
right: alpha^2 + sigma^2 = 1 for "epsilon", "v_prediction" and "sample", alpha + sigma = 1 for "flow_prediction".
Timesteps are float32 and not rounded to integers: every network of diffusers takes them through a sinusoidal embedding;
those of a solver that was fitted to a network with integer times are int64.
FLUX alone casts them to the dtype of its latents (in bfloat16 multiples of 4 above 512), as it does for any scheduler.
A flow network that counts time the other way round (`invert_sigmas`: OmniGen, Mochi) is told 1 - sigma and predicts the
opposite slope; one whose pipeline gives timesteps of its own beside the sigmas (CogView4, GLM-Image) is told times from
before the shift of its scheduler, which the solver's own levels are then brought back to.

The first tensor of a pipeline is unit noise, but a solver may begin at ``first_scale * noise`` with a scale below 1 (an
EDM path that starts at sigma 80, an analytical first step). Pipelines that call `scale_model_input` play it exactly. In
the others (DDPM, SD3, FLUX) the network's first input alone is too large by that factor; where a pipeline takes
`latents`, ``initial_noise="scaled"`` with ``latents = noise * scheduler.init_noise_sigma`` is exact there too.

Beginning in the middle (img2img and inpainting strength, SDXL's denoising_start) restarts at first order: the state
is taken to lie on the straight line of its own denoised image d and noise (x - alpha d) / sigma, so d stands for every
denoised image of the evaluations left out, and the rows that remain are played as they are.

The configuration keeps all of the scheduler that was replaced, for pipelines that read it and for the way back:
``EulerDiscreteScheduler.from_config(pipe.scheduler.config)`` is the scheduler from before.

This file needs torch and diffusers alone and may be copied beside a saved `scheduler_config.json`.
"""

from __future__ import annotations

import inspect
import math
import warnings
import weakref
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin, SchedulerOutput
from torch import Tensor

PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow_prediction")
LEFT_OUT = ("EDMEulerScheduler", "DPMSolverSDEScheduler")
COMPATIBLE = [scheduler.name for scheduler in KarrasDiffusionSchedulers if scheduler.name not in LEFT_OUT]
COMPATIBLE += ["CogVideoXDDIMScheduler", "CogVideoXDPMScheduler", "DDIMParallelScheduler", "DDPMParallelScheduler"]
COMPATIBLE += [
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "HeliosScheduler",
    "SASolverScheduler",
]


class LearnedSolverScheduler(SchedulerMixin, ConfigMixin):
    """Plays the table of a solver; make it with `from_solver` or `from_pretrained`.

    Args:
        solver_timesteps: Timestep told to the network at each evaluation, in the network's own unit; all integers for a
            network that takes only these, in int64. Length: nfe.
        solver_levels: (alpha, sigma) of the same level, in the network's own scale. Shape: (nfe, 2).
        solver_rows: Row k holds A_k and B_k0 ... B_k,k-1; the last row gives the sample. Lengths: 1 to nfe + 1.
        prediction_type: What the network predicts, one of `PREDICTIONS`.
        initial_noise: "unit": the pipeline's first tensor is unit noise. "scaled": it is the solver's first state.
        guidance_scale: Guidance scale that the solver was fitted for, where known.
        solver: One line about the solver, for people.
        use_flow_sigmas: True for flow networks: makes FLUX send no sigmas of its own.
        num_train_timesteps: The network's schedule in diffusers' words, as are the seven after it, so that other
            schedulers can be made from this configuration.
        invert_sigmas: A flow network that is told 1 - sigma and predicts denoised minus noise.
    Raises:
        ValueError: the numbers are no solver, or an epsilon network would be asked at alpha = 0.
    """

    _compatibles = COMPATIBLE
    order = 1

    @register_to_config
    def __init__(
        self,
        solver_timesteps: Sequence[float] = (),
        solver_levels: Sequence[Sequence[float]] = (),
        solver_rows: Sequence[Sequence[float]] = (),
        prediction_type: str = "epsilon",
        initial_noise: str = "unit",
        guidance_scale: float | None = None,
        solver: str = "",
        use_flow_sigmas: bool = False,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        rescale_betas_zero_snr: bool = False,
        shift: float = 1.0,
        snr_shift_scale: float = 1.0,
        invert_sigmas: bool = False,
    ) -> None:
        problem = _find_problem(solver_timesteps, solver_levels, solver_rows, prediction_type, initial_noise)
        if problem:
            raise ValueError(
                f"{problem}; make the scheduler with from_solver(file, pipeline) or from_pretrained(folder)"
            )
        self._told = [(float(alpha), float(sigma)) for alpha, sigma in solver_levels]
        self._rows = [[float(value) for value in row] for row in solver_rows]
        self._prediction, self._guidance = prediction_type, guidance_scale
        self._starts_scaled = initial_noise == "scaled"
        self._steps = int(num_train_timesteps)
        self._numbers = list(solver_timesteps)
        self._dtype = torch.int64 if all(isinstance(value, int) for value in self._numbers) else torch.float32
        self._pipeline: Any = None
        self._is_flow, self._is_inverted = prediction_type == "flow_prediction", invert_sigmas
        levels = [sigma if self._is_flow else sigma / alpha if alpha else math.inf for alpha, sigma in self._told]
        levels = [1 - level for level in [*levels, 0.0]] if invert_sigmas else [*levels, 0.0]
        self.sigmas = torch.tensor(levels, dtype=torch.float32)
        if not self._is_flow:
            self.betas, self.alphas_cumprod = _training_schedule(self.config)
            self.alphas, self.final_alpha_cumprod = 1.0 - self.betas, torch.tensor(1.0)
        self.set_timesteps()

    @classmethod
    def from_solver(cls, solver: Any, target: Any = None, initial_noise: str = "unit") -> LearnedSolverScheduler:
        """Make the scheduler of a solver for the network of a pipeline; needs the package `solverdistill`.

        Args:
            solver: Path of a solver.json, or a `SolverFile`, or a `SolverProgram`.
            target: The pipeline, its scheduler, or the configuration of that; says what the network predicts and on
                which schedule. None takes the teacher that the file names. A pipeline is remembered (weakly), so that
                `set_timesteps` can compare its guidance scale with that of the solver. The configuration of its
                scheduler is kept.
            initial_noise: See the class.
        """
        try:
            from solverdistill.consumers.diffusers_config import replaced_config, scheduler_config
        except ImportError:
            raise ImportError(
                "reading a solver.json needs the package solverdistill; from_pretrained does not"
            ) from None
        own, replaced = scheduler_config(solver, target, initial_noise), replaced_config(target)
        scheduler = cls(**own)
        scheduler.register_to_config(**{key: value for key, value in replaced.items() if key not in own})
        if hasattr(target, "scheduler"):
            scheduler._pipeline = weakref.ref(target)
        return scheduler

    def __getstate__(self) -> dict[str, Any]:
        """A copy knows no pipeline."""
        return {**self.__dict__, "_pipeline": None}

    def __len__(self) -> int:
        return self._steps

    @property
    def nfe(self) -> int:
        """Evaluations of the network, the only `num_inference_steps` there is."""
        return len(self._told)

    @property
    def first_scale(self) -> float:
        """Size of the solver's first state for unit noise."""
        return self._rows[0][0]

    @property
    def init_noise_sigma(self) -> float:
        """Factor by which pipelines multiply their noise, where they do."""
        return self.first_scale if self._starts_scaled else 1.0

    @property
    def step_index(self) -> int | None:
        """Evaluation that comes next; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Evaluation at which the pipeline begins, where it said so."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at a later evaluation, from a state at its noise level."""
        if not 0 <= begin_index < self.nfe:
            raise ValueError(f"a solver of {self.nfe} evaluations cannot begin at {begin_index}; use a larger strength")
        self._begin_index = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Any = None,
        timesteps: Any = None,
        mu: float | None = None,
    ) -> None:
        """Forget the last image and put the timesteps on a device.

        Args:
            num_inference_steps: Must be `nfe`; None takes it.
            device: Where `timesteps` go.
            sigmas: A list must be the solver's own, lest it be a user's. An array, a tensor, and a list of a pipeline
                whose call takes none is what the pipeline makes by itself and only has to have `nfe` entries.
            timesteps: As sigmas. Where a pipeline sends them, its flow network is told times from before the shift of
                the scheduler that was replaced, as that scheduler would do.
            mu: A pipeline's dynamic shift; says how far those times are from the solver's noise levels.
        Raises:
            ValueError: another number of steps, or levels that are not the solver's.
        """
        told = self._numbers
        for name, given, own in (("timesteps", timesteps, told), ("sigmas", sigmas, self.sigmas.tolist())):
            if given is None:
                continue
            values = [float(value) for value in given]
            may_be_users = isinstance(given, (list, tuple)) or (name == "timesteps" and not self._is_flow)
            if may_be_users and not (
                _same(values, _even(values)) or _same(values, own) or _same(values, own[: self.nfe])
            ):
                self._judge_list(name)
            num_inference_steps = self.nfe if _same(values, own) else len(values)
        if num_inference_steps not in (None, self.nfe):
            message = f"this solver makes {self.nfe} evaluations, not {num_inference_steps}"
            raise ValueError(f"{message}; call the pipeline with num_inference_steps={self.nfe}")
        self.num_inference_steps = self.nfe
        self._shift = 1.0
        if timesteps is not None and self._is_flow and not _same([float(value) for value in timesteps], told):
            self._shift = self._find_shift(mu)
            told = [_unshifted(number / self._steps, self._shift) * self._steps for number in told]
        self._entries = told
        self.timesteps = torch.tensor(told, dtype=self._dtype).to(device)
        self._step_index: int | None = None
        self._begin_index: int | None = None
        self._noised, self._was_scaled, self._scaled_input = False, False, None
        self._noise: Tensor | None = None
        self._state: Tensor | None = None
        self._denoised: list[Tensor] = []
        pipeline = self._pipeline() if self._pipeline is not None else None
        network = getattr(pipeline, "transformer", None) or getattr(pipeline, "unet", None)
        if not getattr(getattr(network, "config", None), "guidance_embeds", False):
            self.check_guidance(getattr(pipeline, "_guidance_scale", None))

    def _judge_list(self, name: str) -> None:
        """Take a list that the pipeline must have made by itself, refuse one that a user may have given."""
        pipeline = self._pipeline() if self._pipeline is not None else None
        takes = inspect.signature(type(pipeline).__call__).parameters if pipeline is not None else (name,)
        if name in takes:
            raise ValueError(f"this solver brings its own noise levels along; call the pipeline without {name}")
        if "timesteps" in takes or "sigmas" in takes:
            warnings.warn(f"this solver plays its own noise levels and not the {name} of the pipeline", stacklevel=3)

    def check_guidance(self, scale: float | None) -> None:
        """Warn where a guidance scale (1 and below: none) is not the one that the solver was fitted for."""
        fitted = self._guidance
        if scale is None or fitted is None or math.isclose(max(float(scale), 1.0), max(fitted, 1.0), rel_tol=1e-6):
            return
        warnings.warn(f"this solver was fitted for guidance scale {fitted:g} and is used with {scale:g}", stacklevel=3)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """Turn a pipeline's unit noise into the solver's first state; later states are what the network expects."""
        is_first = self._step_index is None and not self._starts_from_state(timestep)
        if not is_first or self._starts_scaled or self.first_scale == 1.0:
            return sample
        self._was_scaled, self._scaled_input = True, sample * self.first_scale
        return self._scaled_input

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        return_dict: bool = True,
        generator: Any = None,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
        per_token_timesteps: Tensor | None = None,
    ) -> SchedulerOutput | tuple[Tensor, Tensor]:
        """Take the network's output at `sample` and return its next input, or the sample after the last evaluation.

        Combinations are formed in float32 (float64 for float64) whatever the dtype of the pipeline, from numbers on the
        host, so that nothing waits for the device. What a pipeline or a callback changes in the states it is given
        (masks) is carried on as a change of the noise.

        Args:
            model_output: Raw, guided output of the network.
            timestep: Entry of `timesteps`; read at the first evaluation only, if the pipeline did not say where it
                begins.
            sample: What the network was given.
            return_dict: Return a `SchedulerOutput`; else a tuple of it and the denoised image (the sample at the end).
            generator: Ignored; the solver draws nothing.
            eta: Ignored.
            use_clipped_model_output: Ignored; nothing is clipped.
            per_token_timesteps: Timestep that each token was told, where tokens that are kept (a given picture) are
                told less; the output is then the negative slope, as for the flow-matching scheduler of diffusers.
                Shape: (batch, tokens).
        """
        dtype = torch.promote_types(sample.dtype, torch.float32)
        if self.config.get("variance_type") in ("learned", "learned_range"):
            model_output = model_output[:, : sample.shape[1]]  # the rest is a variance, of no use to an ODE
        output, begins = model_output.to(dtype), self._step_index is None
        from_state = begins and self._starts_from_state(timestep)
        k = self._first_index(timestep) if self._step_index is None else self._step_index
        if k >= self.nfe:
            raise ValueError(f"all {self.nfe} evaluations are done; call set_timesteps before another image")
        x = self._first_state(sample, dtype, from_state) if begins else self._given_state(sample, dtype, k)
        if per_token_timesteps is None:
            denoised = self._to_denoised(x, output, *self._told[k])
        else:
            denoised = torch.addcmul(x, output, self._token_sigmas(per_token_timesteps, dtype))
        if from_state:
            self._restart(x, denoised, k)
        self._denoised.append(denoised)
        assert self._noise is not None
        self._state = _combine(self._rows[k + 1], [self._noise, *self._denoised])
        self._step_index = k + 1
        previous, is_last = self._state.to(sample.dtype, copy=True), k + 1 == self.nfe
        if is_last:
            self._noise, self._state = None, None
            self._denoised.clear()
        if return_dict:
            return SchedulerOutput(prev_sample=previous)
        return previous, previous if is_last else denoised.to(sample.dtype)  # PixArt reads the second of a single step

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """State alpha * original + sigma * noise at entries of `timesteps` (at the nearest entry for other numbers)."""
        self._noised = self._noised or self._step_index is None
        dtype = torch.promote_types(original_samples.dtype, torch.float32)
        device = original_samples.device
        told = torch.tensor(self._told, dtype=dtype).to(device)
        own = torch.tensor(self._entries, dtype=torch.float32).to(device)
        asked = torch.as_tensor(timesteps, dtype=torch.float32, device=device).reshape(-1, 1)
        alpha, sigma = told[(asked - own).abs().argmin(1)].unbind(1)
        shape = (-1, *[1] * (original_samples.ndim - 1))
        state = alpha.view(shape) * original_samples.to(dtype) + sigma.view(shape) * noise.to(device, dtype)
        return state.to(original_samples.dtype)

    def scale_noise(self, sample: Tensor, timestep: Any, noise: Tensor) -> Tensor:
        """`add_noise` under the name and in the order of flow pipelines."""
        return self.add_noise(sample, noise, timestep)

    def _starts_from_state(self, timestep: Any) -> bool:
        """Whether the first tensor is a noised image and not noise."""
        return self._noised or self._first_index(timestep) > 0

    def _first_index(self, timestep: Any) -> int:
        """Where the pipeline begins: as it said, else by the timestep's place in `timesteps`."""
        if self._begin_index is not None:
            return self._begin_index
        if isinstance(timestep, Tensor):
            # an entry of `timesteps` is a view of it, so that its place is known without waiting for the device
            if timestep.untyped_storage()._cdata == self.timesteps.untyped_storage()._cdata:
                return int(timestep.storage_offset())
            if timestep.device.type != "cpu":
                return 0
            timestep = timestep.flatten()[0].item()
        if timestep is None:
            return 0
        distances = [abs(number - timestep) for number in self._entries]
        return distances.index(min(distances))

    def _first_state(self, sample: Tensor, dtype: torch.dtype, from_state: bool) -> Tensor:
        """The network's first input; keeps the noise behind it."""
        is_scaled = self._starts_scaled or sample is self._scaled_input  # DiT returns what it was given
        self._scaled_input, sample = None, sample.to(dtype)
        if from_state:
            return sample
        # a copy: some pipelines write the next state into the tensor that they gave
        self._noise = sample / self.first_scale if is_scaled else sample.clone()
        return self._noise * self.first_scale if self._was_scaled else sample

    def _given_state(self, sample: Tensor, dtype: torch.dtype, k: int) -> Tensor:
        """The state kept in full precision, moved by what the pipeline changed since it was returned."""
        assert self._state is not None and self._noise is not None
        change = sample.to(dtype) - self._state.to(sample.dtype).to(dtype)
        if self._rows[k][0] != 0:
            self._noise = torch.add(self._noise, change, alpha=1 / self._rows[k][0])
        return self._state + change

    def _restart(self, x: Tensor, denoised: Tensor, k: int) -> None:
        """Fill in the evaluations left out: one straight line through the state."""
        alpha, sigma = self._told[k]
        self._noise = (x - alpha * denoised) / sigma if sigma > 0 else torch.zeros_like(x)
        self._denoised = [denoised] * k

    def _to_denoised(self, x: Tensor, output: Tensor, alpha: float, sigma: float) -> Tensor:
        if self._prediction == "sample":
            return output.clone()
        if self._prediction == "epsilon":
            return torch.sub(x, output, alpha=sigma) / alpha
        return torch.sub(x if self._is_flow else x * alpha, output, alpha=-sigma if self._is_inverted else sigma)

    def _find_shift(self, mu: float | None) -> float:
        """The f of s = f t / (f t + 1 - t), by which the replaced scheduler comes from times t to noise levels s."""
        replaced = self.config
        for key in ("shift_terminal", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"):
            if replaced.get(key):
                raise ValueError(
                    f"this pipeline tells its network other times than noise levels, and with {key} of its scheduler "
                    f"it is not known which; make the pipeline's scheduler without {key} before it is replaced"
                )
        if "use_dynamic_shifting" not in replaced:
            raise ValueError(
                "this pipeline tells its network other times than noise levels, by the shift of a scheduler that is "
                "not known; make the scheduler with from_solver(file, pipeline)"
            )
        if replaced["use_dynamic_shifting"]:
            if mu is None:
                raise ValueError("the replaced scheduler shifts its times dynamically; give set_timesteps mu")
            return float(mu) if replaced.get("time_shift_type") == "linear" else math.exp(mu)
        return float(replaced.get("shift", 1.0))

    def _token_sigmas(self, timesteps: Tensor, dtype: torch.dtype) -> Tensor:
        """Noise level of every token. Shape: (batch, tokens, 1)."""
        t = timesteps.to(dtype)[..., None] / self._steps
        return t if self._shift == 1 else self._shift * t / (self._shift * t + (1 - t))


def _combine(row: Sequence[float], registers: Sequence[Tensor]) -> Tensor:
    """Sum of coefficient times register over the entries that are not zero."""
    total: Tensor | None = None
    for value, register in zip(row, registers, strict=True):
        if value != 0:
            total = register * value if total is None else torch.add(total, register, alpha=value)
    return torch.zeros_like(registers[0]) if total is None else total


def _unshifted(sigma: float, shift: float) -> float:
    return sigma / (sigma + shift * (1 - sigma))


def _even(values: Sequence[float]) -> list[float]:
    """The even division of [0, 1] that flow pipelines send for none."""
    return [1 - i / len(values) for i in range(len(values))]


def _training_schedule(config: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """betas and alphas_cumprod of the network's training, which some pipelines read. Shapes: (num_train_timesteps,)."""
    steps, start, end = int(config["num_train_timesteps"]), float(config["beta_start"]), float(config["beta_end"])
    if config["trained_betas"] is not None:
        betas = torch.tensor(config["trained_betas"], dtype=torch.float32)
    elif config["beta_schedule"] == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float32) ** 2
    elif config["beta_schedule"] == "squaredcos_cap_v2":
        bar = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
        betas = torch.tensor([min(1 - b / a, 0.999) for a, b in pairwise(bar)], dtype=torch.float32)
    else:
        betas = torch.linspace(start, end, steps, dtype=torch.float32)
    kept = torch.cumprod(1.0 - betas, dim=0)
    scale = float(config["snr_shift_scale"])
    kept = kept / (scale + (1 - scale) * kept) if scale != 1 else kept
    if config["rescale_betas_zero_snr"]:
        root = kept.sqrt()
        kept = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
        betas = 1 - kept / torch.cat([torch.ones(1), kept[:-1]])
    return betas, kept


def _same(values: Sequence[float], own: Sequence[float]) -> bool:
    return len(values) == len(own) and all(
        math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-5) for a, b in zip(values, own, strict=True)
    )


def _find_problem(
    timesteps: Sequence[float], levels: Sequence[Any], rows: Sequence[Any], prediction: str, initial_noise: str
) -> str | None:
    """Say in a clause what is wrong with a configuration, or None."""
    nfe = len(timesteps)
    if nfe == 0:
        return "this scheduler configuration holds no solver"
    if len(levels) != nfe or [len(row) for row in rows] != list(range(1, nfe + 2)):
        return f"solver_levels and solver_rows are not those of a solver of {nfe} evaluations"
    numbers = [*timesteps, *(v for level in levels for v in level), *(v for row in rows for v in row)]
    if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in numbers):
        return "the solver holds something that is not a finite number"
    if prediction not in PREDICTIONS:
        return f"prediction_type {prediction!r} is unknown (known: {', '.join(PREDICTIONS)})"
    if initial_noise not in ("unit", "scaled"):
        return f"initial_noise {initial_noise!r} is unknown (known: unit, scaled)"
    if rows[0][0] == 0:
        return "the solver ignores its noise"
    if prediction == "epsilon" and any(level[0] == 0 for level in levels):
        return "an epsilon network says nothing at alpha = 0, where this solver evaluates it"
    return None
