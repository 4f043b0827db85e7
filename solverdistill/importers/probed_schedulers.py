"""Schedulers of diffusers, run for one sample as a pipeline runs them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from solverdistill.importers.one_hot import Answer, Play
from solverdistill.noise.paths import Cosine, Discrete, Flow
from solverdistill.noise.paths import Path as NoisePath
from solverdistill.teachers.diffusers.folder import library, read_json
from solverdistill.teachers.diffusers.schedule import Schedule, make_schedule

CLIPPING = ("thresholding", "clip_sample")
SAME_TABLE = 1e-4  # relative difference of alphas_cumprod in single precision


@dataclass(frozen=True)
class Network:
    """What a scheduler takes the network for.

    Args:
        path: Its noise levels.
        prediction: "eps", "v", "denoised" or "flow".
        steps: Timesteps in the path's unit of time; 0 where timesteps are times.
    """

    path: NoisePath
    prediction: str
    steps: int

    def level(self, timestep: float) -> tuple[float, float]:
        """(alpha, sigma) that the network is told by a timestep."""
        if isinstance(self.path, Discrete):
            timestep += 1  # the first timestep is 0 and its level not clean
        time = torch.tensor(timestep / self.steps if self.steps else timestep, dtype=torch.float64)
        alpha, sigma = self.path.alpha_sigma(time)
        return float(alpha), float(sigma)

    def output(self, x: Tensor, denoised: Tensor, alpha: float, sigma: float) -> Tensor:
        """The network's own output, of a denoised image."""
        if self.prediction == "denoised":
            return denoised
        if self.prediction == "v":
            return (x * alpha - denoised) / sigma
        return (x - denoised * (1.0 if self.prediction == "flow" else alpha)) / sigma

    def description(self, name: str) -> dict[str, Any]:
        """What a solver file says about the teacher, which was never seen."""
        facts = {"name": name, "fingerprint": "unknown", "prediction": self.prediction}
        end = 0.0 if self.prediction == "flow" or not self.steps else 1 / self.steps
        return {**facts, "path": self.path.hyperparameters(), "noise_range": [1.0, end]}


def network_of(scheduler: Any) -> Network:
    """What the network of a scheduler predicts, and at which levels.

    Raises:
        ValueError: the scheduler is of a kind that is not known, or its levels are not those of its timesteps.
    """
    name, config = type(scheduler).__name__, dict(scheduler.config)
    if name == "IPNDMScheduler":  # knows no training schedule: its times are those of a cosine path
        return Network(Cosine(), "v", 0)
    if "sigma_data" in config:
        raise ValueError(
            f"{name} preconditions its network as EDM does, which is not supported; known: eps, v and flow"
        )
    if config.get("invert_sigmas"):
        raise ValueError(f"{name} with invert_sigmas tells its network times that run from data to noise")
    steps = int(config.get("num_train_timesteps", 1000))
    if config.get("prediction_type") == "flow_prediction" or name.startswith("FlowMatch"):
        return Network(Flow(), "flow", steps)
    schedule = make_schedule({**config, "_class_name": name})
    return Network(_own_levels(scheduler, schedule), schedule.prediction, schedule.steps)


def _own_levels(scheduler: Any, schedule: Schedule) -> NoisePath:
    """The path of the scheduler's configuration, or of its own alphas_cumprod where these are others."""
    own = getattr(scheduler, "alphas_cumprod", None)
    if own is None or not isinstance(schedule.path, Discrete):
        return schedule.path
    own, known = torch.as_tensor(own, dtype=torch.float64), torch.exp(2 * schedule.path.table[1])
    if len(own) == len(known) and torch.allclose(own[:-1], known[:-1], rtol=SAME_TABLE, atol=0):
        return schedule.path
    if bool((own <= 0).any()):
        raise ValueError(f"{type(scheduler).__name__} has alphas_cumprod of 0, at which a network has no noise level")
    return Discrete(tuple(own.tolist()))


def play_scheduler(scheduler: Any, network: Network, arguments: Mapping[str, Any]) -> Play:
    """How a scheduler is run; it is copied for every run and stays as it is.

    Args:
        scheduler: Of diffusers.
        network: What it takes the network for.
        arguments: Of its `set_timesteps`.
    """
    for part in ("set_timesteps", "step"):
        if not hasattr(scheduler, part):
            raise ValueError(f"{type(scheduler).__name__} is no scheduler of diffusers: it has no {part}")

    def play(answer: Answer, noise: Tensor) -> Tensor:
        own = copy.deepcopy(scheduler)
        try:
            own.set_timesteps(**arguments)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{type(own).__name__} cannot make these steps: {error}") from None
        x = noise * float(getattr(own, "init_noise_sigma", 1.0))
        for timestep in own.timesteps:
            seen = own.scale_model_input(x, timestep) if hasattr(own, "scale_model_input") else x
            alpha, sigma = network.level(float(timestep))
            denoised = answer(seen, alpha, sigma).to(seen.dtype)
            x = own.step(network.output(seen, denoised, alpha, sigma), timestep, x, return_dict=False)[0]
        return x

    return play


def hint_of(scheduler: Any) -> str:
    """What of a configuration keeps a scheduler from being a table."""
    found = [f"{key}={scheduler.config[key]}" for key in CLIPPING if scheduler.config.get(key)]
    return f" ({', '.join(found)} in its configuration depends on the image)" if found else ""


def load_scheduler(name: str | None, config: str | None, options: Mapping[str, Any]) -> Any:
    """A scheduler of diffusers by name, with the configuration of a folder.

    Args:
        name: Its class; None takes the one that the configuration names.
        config: A pipeline's folder, a scheduler's, or its JSON file; None takes the class's own defaults.
        options: Values in place of those of the configuration.
    Raises:
        ValueError: there is no such scheduler, or it refuses an option.
    """
    diffusers, stored = library(), {} if config is None else _read_config(Path(config).expanduser())
    name = name or stored.get("_class_name")
    cls = getattr(diffusers, name, None) if isinstance(name, str) and "Scheduler" in name else None
    if not isinstance(cls, type):
        raise ValueError(
            f"diffusers has no scheduler {name!r}; give the name of a class, such as UniPCMultistepScheduler"
        )
    unknown = sorted(set(options) - set(inspect.signature(cls).parameters))
    if unknown:
        raise ValueError(f"{name} has no setting {unknown[0]!r}")
    return cls.from_config({**stored, **options})


def _read_config(path: Path) -> dict[str, Any]:
    if path.is_file():
        return read_json(path.parent, path.name)
    return read_json(path, "scheduler/scheduler_config.json", "scheduler_config.json")
