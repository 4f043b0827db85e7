"""Guidance by a rule: drawn scales, intervals of noise, first channels; and what it costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from solverdistill import families, sample
from solverdistill.denoisers.base import Teacher
from solverdistill.denoisers.guidance import GuidanceRule, RuleGuided, ScaleDrawn, make_guided, network_passes
from solverdistill.denoisers.wrappers import Checkpointed, Counted, Guided
from solverdistill.noise.grids import Grid
from solverdistill.noise.paths import Flow
from solverdistill.references.seeding import seeded_noise
from solverdistill.teachers.mixture import Mixture


class Recording(Teacher):
    """The teacher inside, keeping how many samples each call had."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__(
            teacher.name, teacher.shape, teacher.path, teacher.noise_range, num_classes=teacher.num_classes
        )
        self.teacher = teacher
        self.calls: list[int] = []

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        self.calls.append(len(x))
        return self.teacher(x, alpha, sigma, cond)


@pytest.fixture
def teacher() -> Recording:
    """Two classes of four-channel samples."""
    means = torch.randn(4, 4, 2, dtype=torch.float64)
    return Recording(Mixture(means, torch.ones(4), torch.full((4,), 0.3), [0, 0, 1, 1]))


def state(batch: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sigma = torch.tensor([4.0, 1.0, 0.1], dtype=torch.float64)[:batch]
    return torch.randn(batch, 4, 2, dtype=torch.float64), torch.ones_like(sigma), sigma, torch.tensor([0, 1, 0])[:batch]


def test_a_number_is_plain_guidance(teacher: Recording) -> None:
    for value in (2.0, {"scale": 2.0}, {"scale": 2.0, "interval": None, "channels": None}):
        source, denoiser = make_guided(teacher, value)
        guided = denoiser.denoiser
        assert source is teacher and isinstance(guided, Guided) and guided.scale == 2.0
        assert GuidanceRule.of(value).description() == 2.0


def test_a_rule_without_limits_is_plain_guidance(teacher: Recording) -> None:
    x, alpha, sigma, cond = state()
    expected = Guided(teacher, 2.5, teacher.null_cond)(x, alpha, sigma, cond)
    torch.testing.assert_close(RuleGuided(teacher, GuidanceRule(2.5))(x, alpha, sigma, cond), expected)
    everywhere = RuleGuided(teacher, GuidanceRule(2.5, interval=(80.0, 0.0), channels=4))
    torch.testing.assert_close(everywhere(x, alpha, sigma, cond), expected)


@pytest.mark.parametrize("interval", [(4.0, 0.1), (2.0, 0.5), (2.0, 0.1), (0.05, 0.01), (80.0, 1.0)])
def test_the_interval_guides_only_inside_and_costs_only_there(
    interval: tuple[float, float], teacher: Recording
) -> None:
    x, alpha, sigma, cond = state()
    guided = Guided(teacher, 3.0, teacher.null_cond)(x, alpha, sigma, cond)
    conditional = teacher(x, alpha, sigma, cond)
    inside = (sigma <= interval[0]) & (sigma > interval[1])
    teacher.calls.clear()
    for scale in (1.0, 5.0):  # levels are scale-free
        result = RuleGuided(teacher, GuidanceRule(3.0, interval))(scale * x, scale * alpha, scale * sigma, cond)
        torch.testing.assert_close(result, torch.where(inside[:, None, None], guided, conditional))
    assert teacher.calls == [3 + int(inside.sum())] * 2


def test_the_ends_of_an_interval_survive_rounding_to_float32(teacher: Recording) -> None:
    rule = RuleGuided(teacher, GuidanceRule(3.0, (0.7, 0.3)))
    level = torch.tensor([0.7, 0.3], dtype=torch.float64)
    scale = torch.hypot(torch.ones_like(level), level)
    inside = rule.inside((1 / scale).float(), (level / scale).float())
    assert inside is not None and inside.tolist() == [True, False]


def test_an_interval_is_in_the_unit_of_the_path_and_knows_pure_noise(teacher: Recording) -> None:
    teacher.path = Flow(3.0)
    rule = RuleGuided(teacher, GuidanceRule(3.0, (1.0, 0.5)))
    inside = rule.inside(torch.tensor([0.0, 0.2, 0.25, 1.0]), torch.tensor([1.0, 0.8, 0.75, 0.0]))
    assert inside is not None and inside.tolist() == [True, True, False, False]  # t = 0.75 at s = 0.5


def test_only_the_first_channels_are_guided(teacher: Recording) -> None:
    x, alpha, sigma, cond = state()
    result = RuleGuided(teacher, GuidanceRule(3.0, channels=3))(x, alpha, sigma, cond)
    guided = Guided(teacher, 3.0, teacher.null_cond)(x, alpha, sigma, cond)
    torch.testing.assert_close(result[:, :3], guided[:, :3])
    torch.testing.assert_close(result[:, 3:], teacher(x, alpha, sigma, cond)[:, 3:])


def test_scales_are_drawn_per_sample_and_travel_with_the_condition(teacher: Recording) -> None:
    source, denoiser = make_guided(teacher, {"scale": [2.0, 6.0], "channels": 3})
    noise, cond = seeded_noise(range(64), source, seed=1)
    plain_noise, plain_cond = seeded_noise(range(64), teacher, seed=1)
    assert torch.equal(noise, plain_noise) and torch.equal(cond["cond"], plain_cond)
    scale = cond["scale"]
    assert scale.shape == (64,) and 2 <= scale.min() < 2.5 and 5.5 < scale.max() <= 6
    assert torch.equal(seeded_noise([5], source, seed=1)[1]["scale"], scale[5:6])
    x, levels = noise.double(), (torch.ones(64, dtype=torch.float64), torch.full((64,), 0.8, dtype=torch.float64))
    result = denoiser(x, *levels, cond)
    for i in (0, 17):
        rule = GuidanceRule(float(scale[i]), channels=3)
        one = slice(i, i + 1)
        alone = RuleGuided(teacher, rule)(x[one], levels[0][one], levels[1][one], plain_cond[one])
        torch.testing.assert_close(result[one], alone, rtol=1e-6, atol=1e-6)


def test_drawn_scales_meet_the_interval_and_the_stages_of_a_program(teacher: Recording) -> None:
    source, denoiser = make_guided(teacher, {"scale": [2.0, 6.0], "interval": [3.0, 0.2]})
    noise, cond = seeded_noise(range(3), source)
    family = families.build("epd", Grid("polynomial", 3, 10.0, 0.01), "edm")
    program = family.program(family.init(0))
    together = sample(program, denoiser, noise.double(), cond)
    pieces = sample(program, denoiser, noise.double(), cond, stage_batch=2)
    torch.testing.assert_close(pieces, together)
    teacher.calls.clear()
    sample(program, denoiser, noise[:1].double(), {"cond": cond["cond"][:1], "scale": cond["scale"][:1]})
    assert sum(teacher.calls) == network_passes(denoiser, program) < 2 * program.nfe


def test_the_drawing_teacher_is_the_teacher(teacher: Recording) -> None:
    source, _ = make_guided(teacher, {"scale": [2.0, 6.0]})
    assert isinstance(source, ScaleDrawn)
    assert source.fingerprint() == teacher.fingerprint() and source.description() == teacher.description()
    assert (source.shape, source.path, source.noise_range) == (teacher.shape, teacher.path, teacher.noise_range)
    x, alpha, sigma, labels = state()
    cond = {"cond": labels, "scale": torch.ones(3)}
    torch.testing.assert_close(source(x, alpha, sigma, cond), teacher(x, alpha, sigma, labels))
    null = source.null_cond(cond)
    assert null["cond"].tolist() == [-1, -1, -1] and torch.equal(null["scale"], cond["scale"])
    assert torch.equal(source.decode(x), x)


def test_gradients_reach_state_and_level(teacher: Recording) -> None:
    x, alpha, sigma, cond = state()
    denoiser = RuleGuided(teacher, GuidanceRule(3.0, (2.0, 0.5), 3))
    leaves = x.requires_grad_(), sigma.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, sigma: denoiser(x, alpha, sigma, cond), leaves)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*is deprecated:FutureWarning")
def test_forward_mode_over_directions_sees_the_same_function(teacher: Recording) -> None:
    x, alpha, sigma, cond = state()
    denoiser = RuleGuided(teacher, GuidanceRule(3.0, (2.0, 0.5), 3))
    tangents = torch.randn(2, 3, dtype=torch.float64)

    def play(sigma: Tensor) -> Tensor:
        return denoiser(x, alpha, sigma, cond)

    together = torch.vmap(lambda tangent: torch.func.jvp(play, (sigma,), (tangent,))[1])(tangents)
    for tangent, result in zip(tangents, together, strict=True):
        step = 1e-5 * tangent
        torch.testing.assert_close(result, (play(sigma + step) - play(sigma - step)) / 2e-5, rtol=1e-5, atol=1e-6)


def test_network_passes_count_guided_evaluations_twice(teacher: Recording) -> None:
    family = families.build("heun", Grid("polynomial", 4, 10.0, 0.01), "edm")
    program = family.program({})
    inside = int(((program.sigma / program.alpha <= 3.0) & (program.sigma / program.alpha > 0.1)).sum())
    assert 0 < inside < program.nfe
    assert network_passes(teacher, program) == program.nfe
    assert network_passes(Guided(teacher, 1.0, teacher.null_cond), program) == program.nfe
    assert network_passes(Counted(Guided(teacher, 2.0, teacher.null_cond)), program) == 2 * program.nfe
    assert network_passes(Checkpointed(RuleGuided(teacher, GuidanceRule(2.0))), program) == 2 * program.nfe
    assert network_passes(RuleGuided(teacher, GuidanceRule(2.0, (3.0, 0.1))), program) == program.nfe + inside
    assert network_passes(RuleGuided(teacher, GuidanceRule(1.0, (3.0, 0.1))), program) == program.nfe


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("strong", "guidance must be a number or a mapping"),
        (True, "guidance must be a number or a mapping"),
        ({"strength": 2.0}, "guidance.strength is unknown; known: scale, interval, channels"),
        ({"scale": "big"}, "guidance.scale must be a finite number"),
        ({"scale": [1.0]}, "guidance.scale must be a pair"),
        ({"scale": [5.0, 2.0]}, r"guidance.scale \[5.0, 2.0\] must be \[lowest, highest\]"),
        ({"scale": 2.0, "interval": [0.1, 4.0]}, r"must be \[noisiest, cleanest\]"),
        ({"scale": 2.0, "interval": 3.0}, "guidance.interval must be a pair"),
        ({"scale": 2.0, "channels": 0}, "guidance.channels must be null or an integer"),
        ({"scale": 2.0, "channels": 9}, "guidance.channels=9 is more than the 4 of mixture"),
    ],
)
def test_impossible_guidance_is_refused(value: Any, message: str, teacher: Recording) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make_guided(teacher, value)


def test_drawn_scales_need_something_to_guide_towards() -> None:
    plain = Mixture(torch.randn(2, 3), torch.ones(2), torch.ones(2))
    source, _ = make_guided(plain, {"scale": [1.0, 2.0]})
    with pytest.raises(ValueError, match="mixture has no conditions"):
        seeded_noise([0], source)


def test_descriptions_tell_rules_apart() -> None:
    rule = GuidanceRule((2.0, 6.0), (0.9, 0.2), 3)
    assert rule.description() == {"scale": [2.0, 6.0], "interval": [0.9, 0.2], "channels": 3}
    assert GuidanceRule(2.0, channels=3).description() == {"scale": 2.0, "channels": 3}
    assert GuidanceRule.of({"scale": [2.0, 6.0], "interval": [0.9, 0.2], "channels": 3}) == rule
