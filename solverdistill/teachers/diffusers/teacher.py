"""A diffusers network as a teacher: any (alpha, sigma) in, the denoised estimate out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from solverdistill.denoisers.base import Teacher, per_sample
from solverdistill.teachers.diffusers.backbones import Backbone
from solverdistill.teachers.diffusers.prompts import ClassLabels, PromptTable
from solverdistill.teachers.diffusers.schedule import Schedule
from solverdistill.teachers.diffusers.vae import Decoder

Conditions = PromptTable | ClassLabels


class DiffusersTeacher(Teacher):
    """D(x; alpha, sigma) of a network that predicts eps, v, the clean image or a flow velocity.

    With z = x / h, a = alpha / h, s = sigma / h, where h = hypot(alpha, sigma), or alpha + sigma on a flow path:

        eps: (z - s F) / a      v: a z - s F      denoised: F      flow: z - s F

    in the dtype of x, float32 at least, whatever the network computes in. A condition is the number of a prompt or of a
    class, int64; -1 and None mean the negative prompt, or no class.

    Args:
        backbone: The network.
        name: Name of the teacher.
        shape: Shape of one sample, (channels, height, width); latents of latent teachers, as the network gets them.
        schedule: Its noise path and prediction type.
        noise_range: Largest and smallest noise level, in the path's own unit; None for all that were trained.
        conditions: Prompts or classes; None for an unconditional teacher.
        decoder: Turns latents into images; None where samples are images.
    """

    def __init__(
        self,
        backbone: Backbone,
        name: str,
        shape: tuple[int, ...],
        schedule: Schedule,
        noise_range: tuple[float, float] | None = None,
        conditions: Conditions | None = None,
        decoder: Decoder | None = None,
    ) -> None:
        classes = conditions.count if isinstance(conditions, ClassLabels) else 0
        levels = noise_range or schedule.noise_range
        super().__init__(name, shape, schedule.path, levels, schedule.prediction, classes)
        self.backbone, self.schedule, self.conditions = backbone, schedule, conditions
        self.decoder, self._fingerprint = decoder, ""
        self.freeze()

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        flow = self.prediction == "flow"
        scale = alpha + sigma if flow else torch.hypot(alpha, sigma)
        time = sigma / scale if flow else self.schedule.timestep(alpha, sigma)
        z, a, s = (per_sample(value, x).to(dtype) for value in (scale, alpha / scale, sigma / scale))
        z = x.to(dtype) / z
        rows = {} if self.conditions is None else self.conditions(cond, x)
        output = self.backbone(z, time, rows).to(dtype)
        if self.prediction == "denoised":
            return output
        if self.prediction == "eps":
            return (z - s * output) / a
        return (z if flow else a * z) - s * output

    def draw_cond(self, generator: torch.Generator) -> Any:
        """Draw the number of a prompt or class; None for an unconditional teacher."""
        if self.conditions is None:
            return None
        return torch.randint(self.conditions.count, (), generator=generator)

    def decode(self, samples: Tensor) -> Tensor:
        return samples if self.decoder is None else self.decoder(samples)

    def description(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"network": self.backbone.network_name, "zero_snr": self.schedule.zero_snr}
        if isinstance(self.conditions, PromptTable):
            facts["prompts"] = self.conditions.count
        facts |= self.backbone.facts()
        return {**super().description(), **facts}

    def fingerprint(self) -> str:
        """As of every teacher, computed once: it reads every weight, and these are frozen."""
        if not self._fingerprint:
            self._fingerprint = super().fingerprint()
        return self._fingerprint
