"""A pipeline of diffusers as a teacher: any (alpha, sigma) in, the denoised estimate out."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack

from solverdistill.denoisers.base import Teacher
from solverdistill.denoisers.guidance import GuidanceRule
from solverdistill.programs.program import SolverProgram
from solverdistill.teachers.diffusers.pipelines.convention import Convention
from solverdistill.teachers.diffusers.pipelines.ending import pictures_of
from solverdistill.teachers.diffusers.pipelines.joining import digest_of
from solverdistill.teachers.diffusers.pipelines.making import Setting, make_parts
from solverdistill.teachers.diffusers.pipelines.replaying import Replay


@dataclass(frozen=True)
class Prompts:
    """How many prompts there are to draw from."""

    count: int


class PipelineTeacher(Teacher):
    """D(x; alpha, sigma) of the network of a pipeline, guided as the pipeline guides it.

    Samples of a batch that share a noise level, and whose prompts can go together, are one call of the pipeline; others
    are further calls. A condition is the number of a prompt, int64. The denoised estimate is formed in the dtype of x,
    float32 at least; the state is given in the dtype of the pipeline's own latents.

    The networks are those of the pipeline: `to` moves them, and they are in evaluation mode and frozen from now on.
    Its other components can be moved or let go once `remember` was called.

    Args:
        setting: The pipeline, and how it is called.
    Raises:
        ValueError: the pipeline resists; the message says why.
    """

    def __init__(self, setting: Setting) -> None:
        replay, convention, shapes, scale = make_parts(setting)
        self_shape = shapes[0] if len(shapes) == 1 else (sum(map(math.prod, shapes)),)
        levels = setting.noise_range or convention.schedule.noise_range
        super().__init__(setting.label, self_shape, convention.schedule.path, levels, convention.schedule.prediction)
        self.setting, self.shapes, self.own_guidance = setting, shapes, scale
        self.replay: Replay = replay
        self.convention: Convention = convention
        self.conditions = Prompts(len(setting.prompts) if setting.prompted else 0)
        self.networks = nn.ModuleDict(replay.view.networks)
        self.rows_seen: dict[float, float] = {}  # log sigma/alpha -> rows of the network per sample
        self._fingerprint = ""
        self.freeze()

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        if peek_interpreter_stack() is not None:
            raise RuntimeError("a pipeline looks at its numbers, which forward derivatives and vmap do not allow")
        rows = [0] * len(x) if cond is None else [max(0, int(row)) for row in cond.tolist()]
        levels = list(zip(alpha.tolist(), sigma.tolist(), strict=True))
        places: list[list[int]] = []
        for level in dict.fromkeys(levels):
            same = [position for position, other in enumerate(levels) if other == level]
            places += [[same[k] for k in group] for group in self.replay.groups([rows[p] for p in same])]
        if len(places) == 1 and places[0] == list(range(len(x))):
            return self._evaluate(x, alpha, sigma, rows)
        parts = []
        for chosen in places:
            index = torch.tensor(chosen, device=x.device)
            parts.append(self._evaluate(x[index], alpha[index], sigma[index], [rows[p] for p in chosen]))
        order = [position for chosen in places for position in chosen]
        back = sorted(range(len(order)), key=order.__getitem__)
        return torch.cat(parts)[torch.tensor(back, device=x.device)]

    def draw_cond(self, generator: torch.Generator) -> Any:
        """Draw the number of a prompt; None where there is one way to call the pipeline."""
        return torch.randint(self.conditions.count, (), generator=generator) if self.conditions.count else None

    def null_cond(self, cond: Any) -> Any:
        raise ValueError(f"{self.name} guides itself; give the run a guidance scale, and no wrapper")

    def guided(self, rule: GuidanceRule) -> Teacher:
        """This teacher at another scale, which becomes an argument of the pipeline's own.

        Raises:
            ValueError: the rule is more than a scale, or the pipeline is not guided.
        """
        if rule.drawn or rule.interval is not None or rule.channels is not None:
            raise ValueError(
                f"{self.name} is guided by its pipeline, to which only a number can be given, not {rule.description()}"
            )
        scale = float(rule.description())  # pyright: ignore[reportArgumentType]
        return self if scale == self.own_guidance else PipelineTeacher(self.setting.at(scale))

    def passes(self, program: SolverProgram) -> int:
        """Rows of the network per sample of a program, counted at the network where it was evaluated."""
        if not self.rows_seen:
            return program.nfe
        levels = zip(program.alpha.tolist(), program.sigma.tolist(), strict=True)
        return round(sum(self._rows_near(alpha, sigma) for alpha, sigma in levels))

    def remember(self) -> None:
        """Run the text encoders and whatever else the pipeline does once per prompt, for all prompts."""
        self.replay.remember()

    def decode(self, samples: Tensor) -> Tensor:
        """Images in [-1, 1], by the pipeline's own ending; of videos four frames side by side."""
        return torch.cat([pictures_of(self.replay, self._streams(sample[None])) for sample in samples])

    def description(self) -> dict[str, Any]:
        facts = {**super().description(), **self.setting.description(), **self.convention.description()}
        return {**facts, "guidance": self.own_guidance}

    def fingerprint(self) -> str:
        """SHA-256 (first 16 hex digits) of description, networks, and what the pipeline makes of its prompts."""
        if not self._fingerprint:
            self.remember()
            digest = hashlib.sha256(super().fingerprint().encode())
            for row in range(len(self.setting.prompts)):
                digest.update(json.dumps([digest_of(value) for value in self.replay.record(row).values()]).encode())
            self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint

    def _evaluate(self, x: Tensor, alpha: Tensor, sigma: Tensor, rows: Sequence[int]) -> Tensor:
        """The denoised estimates of samples that share a level and can go together."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        fine = torch.float32 if x.device.type == "mps" else torch.float64
        alpha, sigma = alpha.to(fine), sigma.to(fine)
        size = self.convention.scale(alpha, sigma)
        a, s = alpha / size, sigma / size
        z = x.to(dtype) / size.to(dtype).view(-1, *[1] * (x.ndim - 1))
        time, level = (_one(value) for value in self.convention.told(a, s))
        told = torch.promote_types(self.replay.dtypes[0], torch.float32)
        answers, counted = self.replay.ask(rows, self._streams(z), time.to(told), level.to(told))
        self.rows_seen[_place(float(a[0]), float(s[0]))] = counted / len(x)
        outputs = [output[:, : shape[0]] for (output, _), shape in zip(answers, self.shapes, strict=True)]
        output = outputs[0] if len(outputs) == 1 else torch.cat([part.flatten(1) for part in outputs], 1)
        return self.convention.denoised(output.to(dtype), z, a.to(dtype), s.to(dtype))

    def _streams(self, z: Tensor) -> list[Tensor]:
        """The states that the pipeline has side by side."""
        if len(self.shapes) == 1:
            return [z]
        parts = z.split([math.prod(shape) for shape in self.shapes], dim=1)
        return [part.reshape(len(z), *shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def _rows_near(self, alpha: float, sigma: float) -> float:
        here = _place(alpha, sigma)
        return self.rows_seen[min(self.rows_seen, key=lambda place: abs(place - here))]


def _one(values: Tensor) -> Tensor:
    """The one number that all samples share, with the gradient divided between them."""
    return values[0].detach() + (values - values.detach()).mean()


def _place(alpha: float, sigma: float) -> float:
    """A noise level as a number to the third digit, in 0..1."""
    return round(sigma / (alpha + sigma), 3)
