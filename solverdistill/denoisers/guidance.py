"""Classifier-free guidance beyond one number: a scale drawn per sample, in an interval of noise, on some channels.

With D_c and D_0 the conditional and unconditional denoised estimates, w the scale of a sample, and m = 1 on guided
channels within the interval and 0 elsewhere:

    D = D_c + m (w - 1) (D_c - D_0)

which is `Guided` where m = 1 everywhere. Outside of its interval a sample costs one network pass instead of two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack
from torch.utils import _pytree as pytree

from solverdistill.denoisers.base import Denoiser, Teacher, call, per_sample
from solverdistill.denoisers.wrappers import Checkpointed, Counted, Guided, InParts, Thresholded
from solverdistill.programs.program import SolverProgram
from solverdistill.support.type_checks import check_range, is_number

EDGE = 1 + 1e-6  # a solver's levels are float32, so that one at an end of the interval may miss it by a rounding


@dataclass(frozen=True)
class GuidanceRule:
    """How strongly, where and on what a teacher is guided.

    Args:
        scale: Guidance scale, or a pair (lowest, highest) between which every sample draws its own.
        interval: Noisiest and cleanest noise level of guidance, in the unit of the teacher's path; guided from the
            first, included, to the second, excluded. None guides everywhere.
        channels: Guide this many first channels and leave the others conditional, as DiT and SiT do with 3 of 4; None
            guides all.

    Reference: Kynkäänniemi et al., "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality
    in Diffusion Models", NeurIPS 2024, Eq. 6; Peebles, Xie, "Scalable Diffusion Models with Transformers", ICCV 2023.
    """

    scale: float | tuple[float, float] = 1.0
    interval: tuple[float, float] | None = None
    channels: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.scale, tuple):
            low, high = _pair("scale", self.scale)
            if low > high:
                raise ValueError(f"guidance.scale {list(self.scale)} must be [lowest, highest]")
        elif not is_number(self.scale):
            raise TypeError(f"guidance.scale must be a finite number or [lowest, highest], not {self.scale!r}")
        check_range("guidance", self.scale[0] if isinstance(self.scale, tuple) else self.scale, least=0)
        if self.interval is not None:
            noisiest, cleanest = _pair("interval", self.interval)
            if noisiest <= cleanest:
                raise ValueError(f"guidance.interval {list(self.interval)} must be [noisiest, cleanest]")
        if self.channels is not None and (type(self.channels) is not int or self.channels < 1):
            raise ValueError(f"guidance.channels must be null or an integer of at least 1, not {self.channels!r}")

    @staticmethod
    def of(value: GuidanceRule | float | Mapping[str, Any]) -> GuidanceRule:
        """The rule that a configuration states: a number, or a mapping of this class's fields.

        Raises:
            ValueError, TypeError: a field is unknown or has an impossible value.
        """
        if isinstance(value, GuidanceRule):
            return value
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return GuidanceRule(value)
        if not isinstance(value, Mapping):
            raise TypeError(f"guidance must be a number or a mapping of scale, interval and channels, not {value!r}")
        known = GuidanceRule.__dataclass_fields__
        for name in value:
            if name not in known:
                raise ValueError(f"guidance.{name} is unknown; known: {', '.join(known)}")
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in value.items()}
        return GuidanceRule(**fields)

    @property
    def drawn(self) -> bool:
        """Whether every sample draws its own scale."""
        return isinstance(self.scale, tuple)

    def description(self) -> float | dict[str, Any]:
        """JSON-able: the number where there is nothing but a scale, else everything that is stated."""
        stated = {name: value for name, value in asdict(self).items() if value is not None}
        if len(stated) == 1 and not isinstance(self.scale, tuple):
            return float(self.scale)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in stated.items()}


def make_guided(
    teacher: Teacher, guidance: GuidanceRule | float | Mapping[str, Any] | None
) -> tuple[Teacher, nn.Module]:
    """Guide a teacher as a configuration says.

    Args:
        teacher: The conditional teacher, or one that guides itself: it comes back, at the scale that is asked for.
        guidance: A scale, or a mapping with `scale`, `interval` and `channels`, as in `GuidanceRule`; None is 1, or
            what a teacher that guides itself does.
    Returns:
        The teacher to draw conditions from, which is the given one unless scales are drawn with them; and the denoiser,
        which takes a batch in parts where the device has no memory for it.
    Raises:
        ValueError, TypeError: the guidance cannot be used with this teacher.
    """
    rule = GuidanceRule.of(settled_guidance(teacher, guidance))
    if teacher.own_guidance is not None:
        own = teacher.guided(rule)
        return own, InParts(own)
    if not rule.drawn and rule.interval is None and rule.channels is None:
        assert not isinstance(rule.scale, tuple)
        return teacher, InParts(Guided(teacher, rule.scale, teacher.null_cond))
    if rule.channels is not None and rule.channels > teacher.shape[0]:
        raise ValueError(f"guidance.channels={rule.channels} is more than the {teacher.shape[0]} of {teacher.name}")
    return ScaleDrawn(teacher, rule) if rule.drawn else teacher, InParts(RuleGuided(teacher, rule))


def settled_guidance(teacher: Teacher, guidance: Any) -> Any:
    """What a run's guidance stands for: None is 1, or what a teacher that guides itself does."""
    if guidance is not None:
        return guidance
    return 1.0 if teacher.own_guidance is None else teacher.own_guidance


class ScaleDrawn(Teacher):
    """A teacher whose conditions carry a guidance scale: ``{"cond": condition, "scale": scale}``.

    Called itself, it is the conditional teacher, whatever the scale.
    """

    def __init__(self, teacher: Teacher, rule: GuidanceRule) -> None:
        facts = (teacher.name, teacher.shape, teacher.path, teacher.noise_range)
        super().__init__(*facts, teacher.prediction, teacher.num_classes)
        self.teacher, self.rule, self.data_range = teacher, rule, teacher.data_range

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        return call(self.teacher, x, alpha, sigma, None if cond is None else cond["cond"])

    def draw_cond(self, generator: torch.Generator) -> dict[str, Any]:
        """Draw the teacher's condition, then its scale, evenly between the ends of the rule."""
        cond = self.teacher.draw_cond(generator)
        if cond is None:
            raise ValueError(f"guidance.scale is drawn, but {self.name} has no conditions to guide towards")
        low, high = _pair("scale", self.rule.scale)
        return {"cond": cond, "scale": low + (high - low) * torch.rand((), generator=generator)}

    def null_cond(self, cond: Any) -> Any:
        return {**cond, "cond": self.teacher.null_cond(cond["cond"])}

    def decode(self, samples: Tensor) -> Tensor:
        return self.teacher.decode(samples)

    def description(self) -> dict[str, Any]:
        return self.teacher.description()

    def fingerprint(self) -> str:
        return self.teacher.fingerprint()


class RuleGuided(nn.Module):
    """A teacher guided by a rule; conditional and unconditional estimates come from one call.

    Args:
        teacher: The conditional teacher.
        rule: Scale, interval and channels.
    """

    def __init__(self, teacher: Teacher, rule: GuidanceRule) -> None:
        super().__init__()
        self.denoiser, self.rule, self.null_cond = teacher, rule, teacher.null_cond
        self._ends: list[tuple[float, float]] = []
        for end in rule.interval or ():
            level = teacher.path.level(end)
            self._ends.append((float(level.alpha), float(level.sigma)))

    @property
    def passes(self) -> int:
        """Most network passes that one evaluation takes."""
        return 1 if self.rule.scale == 1 else 2

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        scale: Any = self.rule.scale
        if self.rule.drawn and cond is not None:
            cond, scale = cond["cond"], per_sample(cond["scale"].to(x.device), x)
        if cond is None or self.passes == 1:
            return call(self.denoiser, x, alpha, sigma, cond)
        inside = self.inside(alpha, sigma)
        if (
            inside is None or peek_interpreter_stack() is not None
        ):  # a function transform cannot choose samples by their level
            conditional, null = self._both(x, alpha, sigma, cond, slice(None))
            step = (scale - 1) * (conditional - null)
            return conditional + self._masked(step if inside is None else step * per_sample(inside, x))
        rows = inside.nonzero().flatten()
        if not len(rows):
            return call(self.denoiser, x, alpha, sigma, cond)
        conditional, null = self._both(x, alpha, sigma, cond, rows)
        strength = scale[rows] if isinstance(scale, Tensor) else scale
        step = self._masked((strength - 1) * (conditional[rows] - null))
        return conditional.index_add(0, rows, step.to(conditional.dtype))

    def inside(self, alpha: Tensor, sigma: Tensor) -> Tensor | None:
        """Which samples lie in the interval, shape (batch,); None where there is none. No logarithm: alpha may be 0."""
        if not self._ends:
            return None
        (high_alpha, high_sigma), (low_alpha, low_sigma) = self._ends
        below = sigma * high_alpha <= alpha * (high_sigma * EDGE)
        return below & (sigma * low_alpha > alpha * (low_sigma * EDGE))

    def _both(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Any, rows: Any) -> tuple[Tensor, Tensor]:
        """Conditional estimates of all samples and unconditional ones of some."""

        def join(value: Any, null: Any) -> Any:
            return torch.cat([value, null[rows]]) if isinstance(value, Tensor) and value.ndim else value

        joined = pytree.tree_map(join, cond, self.null_cond(cond))
        outputs = self.denoiser(*(join(value, value) for value in (x, alpha, sigma)), joined)
        return outputs[: len(x)], outputs[len(x) :]

    def _masked(self, step: Tensor) -> Tensor:
        """Nothing on the channels that are not guided."""
        channels = self.rule.channels
        if channels is None:
            return step
        return torch.cat([step[:, :channels], torch.zeros_like(step[:, channels:])], dim=1)


def network_passes(denoiser: Denoiser, program: SolverProgram) -> int:
    """Network passes per sample of a program: its evaluations, those that are guided counted twice."""
    if isinstance(denoiser, (Counted, Checkpointed, InParts, Thresholded)):
        return network_passes(denoiser.denoiser, program)
    if isinstance(denoiser, RuleGuided) and denoiser.passes == 2:
        inside = denoiser.inside(program.alpha, program.sigma)
        return program.nfe + (program.nfe if inside is None else int(inside.sum()))
    if isinstance(denoiser, Teacher):
        return denoiser.passes(program)
    return program.nfe * (denoiser.passes if isinstance(denoiser, Guided) else 1)


def _pair(name: str, value: Any) -> tuple[float, float]:
    if not isinstance(value, tuple) or len(value) != 2 or not all(is_number(v) for v in value):
        raise TypeError(f"guidance.{name} must be a pair of finite numbers, not {value!r}")
    return value
