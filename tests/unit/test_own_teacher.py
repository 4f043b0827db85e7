"""Own networks as teachers: what every convention means, exactly, at any scale of the level."""

from __future__ import annotations

import sys
import warnings
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from solverdistill import Grid, families, sample
from solverdistill.denoisers.base import per_sample
from solverdistill.denoisers.wrappers import Guided
from solverdistill.noise.paths import Path as NoisePath
from solverdistill.noise.paths import make_path
from solverdistill.teachers.mixture import toy_mixture
from solverdistill.teachers.own.integer_times import snap_program
from solverdistill.teachers.own.load import load_own
from solverdistill.teachers.own.native_levels import NativeLevels, make_schedule
from solverdistill.teachers.own.teacher import OwnTeacher

DISCRETE = {"name": "discrete", "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "steps": 1000}
SCHEDULES: dict[str, Any] = {
    "edm": "edm",
    "flow": "flow",
    "shifted": {"name": "flow", "shift": 3.0},
    "vp": {"name": "vp", "beta_0": 0.2, "beta_1": 15.0},
    "cosine": "cosine",
    "linear": DISCRETE,
    "scaled_linear": "discrete",
    "cosine_betas": {"name": "discrete", "beta_schedule": "cosine", "steps": 400},
    "betas": {"name": "discrete", "betas": torch.linspace(1e-3, 0.2, 50).tolist()},
}
MIXTURE = toy_mixture()


class Exact(nn.Module):
    """The mixture's exact answer in the words of a convention, read from the number that it is told.

    Takes native states, as a trained network does, and finds the level from its own idea of time.
    """

    def __init__(self, path: NoisePath, prediction: str, time: str, factor: float = 1.0) -> None:
        super().__init__()
        self.path, self.prediction, self.time, self.factor = path, prediction, time, factor
        self.weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        self.seen.append(time.detach())
        time = time / self.factor
        if self.time == "index":
            s = (time + 1) / len(self.path.table[0])  # pyright: ignore[reportAttributeAccessIssue]
        elif self.time in ("log_sigma", "half_log_snr"):
            s = self.path.from_half_log_snr(-time if self.time == "log_sigma" else time)
        else:
            s = 1 - time if self.time == "reversed" else time
            s = self.path.from_clock(s) if self.path.name == "flow" else s
        a, g = self.path.alpha_sigma(s)
        rates = self.path.derivatives(s) if self.path.name != "discrete" else None
        a, g = a[:, None], g[:, None]
        denoised = MIXTURE(x, a[:, 0], g[:, 0])
        noise = (x - a * denoised) / g
        if self.prediction == "v":
            return (a * noise - g * denoised) / torch.hypot(a, g)
        if self.prediction == "flow":
            assert rates is not None
            slope = rates.sigma if self.path.name == "flow" else torch.ones(())
            ra, rg = rates.alpha / slope, rates.sigma / slope
            return (ra[:, None] * denoised + rg[:, None] * noise) * (-1 if self.time == "reversed" else 1)
        return noise if self.prediction == "eps" else denoised


def own(schedule: Any, prediction: str, time: str, factor: float = 1.0, **options: Any) -> OwnTeacher:
    path = make_schedule(schedule)
    return OwnTeacher(
        Exact(path, prediction, time, factor),
        options.pop("convention", None) or convention(prediction, time, factor),
        path,
        (6,),
        (0.9, 0.01),
        **options,
    )


def convention(prediction: str, time: str, factor: float = 1.0, **options: Any) -> Any:
    from solverdistill.teachers.own.conventions import Convention

    return Convention(prediction, time, time_scale=factor, **options)


def cases() -> list[tuple[str, str, str]]:
    found = []
    for schedule, prediction, time in product(
        SCHEDULES, ("eps", "v", "flow", "denoised"), ("schedule", "reversed", "index", "log_sigma", "half_log_snr")
    ):
        discrete = make_schedule(SCHEDULES[schedule]).name == "discrete"
        if not (discrete and prediction == "flow") and not (time == "index" and not discrete):
            found.append((schedule, prediction, time))
    return found


@pytest.mark.parametrize(("schedule", "prediction", "time"), cases())
def test_every_convention_is_the_exact_denoiser(schedule: str, prediction: str, time: str) -> None:
    teacher = own(SCHEDULES[schedule], prediction, time, factor=0.7)
    torch.manual_seed(0)
    scale = torch.tensor([1.0, 3.0, 0.02, 700.0], dtype=torch.float64)
    ratio = torch.tensor([6.0, 1.3, 0.4, 0.05], dtype=torch.float64)
    x = torch.randn(4, 6, dtype=torch.float64) * (scale * torch.hypot(torch.ones(4), ratio))[:, None]
    found = teacher(x, scale, scale * ratio)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, MIXTURE(x, scale, scale * ratio), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_times_are_those_of_the_path_and_go_past_its_ends(schedule: str) -> None:
    path = make_schedule(SCHEDULES[schedule])
    levels = NativeLevels(path)
    s = torch.tensor([0.02, 0.3, 0.77, 0.98], dtype=torch.float64)
    alpha, sigma = path.alpha_sigma(s)
    expected = sigma / (alpha + sigma) if path.name == "flow" else s
    for scale in (1.0, 13.0):
        torch.testing.assert_close(levels.time(scale * alpha, scale * sigma), expected, rtol=1e-9, atol=1e-12)
    if path.name == "discrete":
        torch.testing.assert_close(levels.index(alpha, sigma), s * levels.count - 1, rtol=1e-9, atol=1e-9)
        beyond = path.alpha_sigma(torch.tensor([1.05, 0.9 / levels.count], dtype=torch.float64))
        torch.testing.assert_close(
            levels.index(*beyond), torch.tensor([1.05 * levels.count - 1, -0.1], dtype=torch.float64)
        )


def test_the_cosine_betas_are_those_of_the_paper() -> None:
    path = make_schedule({"name": "discrete", "beta_schedule": "cosine", "steps": 1000})
    alpha = path.alpha_sigma(torch.tensor([0.5, 1.0], dtype=torch.float64))[0]
    squares = [torch.cos(torch.tensor((u + 0.008) / 1.008 * torch.pi / 2, dtype=torch.float64)) ** 2 for u in (0.5, 0)]
    torch.testing.assert_close(alpha[0] ** 2, squares[0] / squares[1], rtol=1e-9, atol=0)
    assert 0 < float(alpha[1] ** 2) < 1e-8


@pytest.mark.parametrize("schedule", ["flow", "vp", "linear"])
@pytest.mark.parametrize("prediction", ["eps", "v", "denoised"])
def test_gradients_reach_the_state_and_the_level(schedule: str, prediction: str) -> None:
    teacher = own(SCHEDULES[schedule], prediction, "schedule")
    x = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    level = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in ([0.8, 0.3], [0.6, 0.9])]
    assert torch.autograd.gradcheck(lambda x, a, s: teacher(x, a, s), (x, *level), atol=1e-6)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.script.*is deprecated", FutureWarning)
        point = (x.detach(), *(v.detach() for v in level))
        tangents = torch.func.jvp(teacher, point, tuple(map(torch.ones_like, point)))
    assert bool(torch.isfinite(tangents[1]).all())


def test_levels_are_batched_under_vmap() -> None:
    teacher = own(DISCRETE, "eps", "index")
    x, sigma = torch.randn(3, 2, 6, dtype=torch.float64), torch.rand(3, 2, dtype=torch.float64) + 0.1
    alpha = torch.ones_like(sigma)
    found = torch.func.vmap(teacher)(x, alpha, sigma)
    expected = torch.stack([teacher(*each) for each in zip(x, alpha, sigma, strict=True)])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_pure_noise_is_exact_where_the_network_knows_the_image() -> None:
    x, alpha, sigma = torch.randn(2, 6, dtype=torch.float64), torch.zeros(2).double(), torch.ones(2).double()
    for prediction in ("flow", "v", "denoised"):
        teacher = load_own_function(prediction)
        torch.testing.assert_close(teacher(x, alpha, sigma), MIXTURE(x, alpha, sigma), rtol=1e-9, atol=1e-9)
    for prediction, schedule in (("eps", "flow"), ("denoised", "edm")):
        teacher = own(schedule, prediction, "schedule")
        with pytest.raises(ValueError, match="says nothing at alpha = 0; start at less noise"):
            teacher(x, alpha, sigma)
    with pytest.raises(ValueError, match="says nothing at alpha = 0, where noise_range"):
        OwnTeacher(nn.Identity(), convention("eps", "schedule"), make_path("flow"), (6,), (1.0, 0.1))


def load_own_function(prediction: str) -> OwnTeacher:
    return own("flow", prediction, "reversed")


class Table(nn.Module):
    """A network with a table of integer times and a table of classes, with dropout and batch statistics."""

    def __init__(self, steps: int = 50, classes: int = 4) -> None:
        super().__init__()
        self.times, self.labels = nn.Embedding(steps, 6), nn.Embedding(classes + 1, 6)
        self.norm, self.drop, self.out = nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 6)
        self.told: list[Tensor] = []

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        assert time.dtype == torch.int64
        self.told.append(time.clone())
        hidden = x + self.times(time) + (0 if label is None else self.labels(label))
        return self.out(self.drop(self.norm(torch.tanh(hidden))))


INTEGERS = {"name": "discrete", "betas": torch.linspace(1e-3, 0.3, 50).tolist()}


def integer_teacher(prediction: str, **options: Any) -> tuple[Table, OwnTeacher]:
    torch.manual_seed(0)
    network = Table().double()
    path = make_schedule(INTEGERS)
    chosen = convention(prediction, "index", discrete_times=True, **options)
    return network, OwnTeacher(network, chosen, path, (6,), (1.0, 1 / 50), "table")


def test_the_index_told_is_the_nearest() -> None:
    network, teacher = integer_teacher("eps")
    path = make_schedule(INTEGERS)
    index = torch.tensor([0.0, 3.4, 3.6, 17.0, 48.51, 49.0, 49.9, -0.1], dtype=torch.float64)
    alpha, sigma = path.alpha_sigma((index + 1) / 50)
    teacher(torch.randn(8, 6, dtype=torch.float64), 5 * alpha, 5 * sigma)
    assert network.told[-1].tolist() == [0, 3, 4, 17, 49, 49, 49, 0]
    a, s = teacher.levels.at_index(network.told[-1])
    torch.testing.assert_close(teacher.levels.index(a, s), network.told[-1].double(), rtol=0, atol=1e-9)


def test_integer_times_leave_the_exact_level_to_the_conversion() -> None:
    _, teacher = integer_teacher("eps")
    x = torch.randn(3, 6, dtype=torch.float64)
    alpha = torch.tensor([0.9, 0.7, 0.3], dtype=torch.float64)
    sigma = torch.sqrt(1 - alpha**2).requires_grad_()
    native = x / per_sample(torch.hypot(alpha, sigma), x)
    eps = teacher.network.network(native, teacher.times(alpha, sigma))
    expected = (x - per_sample(sigma, x) * eps) / per_sample(alpha, x)
    found = teacher(x, alpha, sigma)
    torch.testing.assert_close(found, expected)
    gradient, wanted = (torch.autograd.grad(value.sum(), sigma, retain_graph=True)[0] for value in (found, expected))
    torch.testing.assert_close(gradient, wanted)
    assert bool((gradient != 0).all())


@pytest.mark.parametrize("prediction", ["eps", "v", "denoised"])
@pytest.mark.parametrize("name", ["epd", "dss", "ld3", "bns"])
def test_a_snapped_program_tells_integers_and_is_the_same_solver(prediction: str, name: str) -> None:
    network, teacher = integer_teacher(prediction)
    family = families.build(name, Grid("polynomial", 4, 0.97, 0.05), teacher.path)
    torch.manual_seed(1)
    params = {key: value + 0.05 * torch.randn_like(value) for key, value in family.init(0).items()}
    program = family.program(params).detach()
    snapped = snap_program(program, teacher.description())
    noise = torch.randn(3, 6, dtype=torch.float64)
    expected = sample(program, teacher, noise, readouts=True)
    trained_on, network.told = torch.cat(network.told), []
    torch.testing.assert_close(sample(snapped, teacher, noise, readouts=True), expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(torch.cat(network.told), trained_on)
    index = teacher.levels.index(snapped.alpha, snapped.sigma)
    torch.testing.assert_close(index, index.round(), rtol=0, atol=1e-8)
    assert float((teacher.levels.index(program.alpha, program.sigma) - index).abs().max()) > 1e-3

    def foreign(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """A consumer that knows nothing of rounding: it converts at the level that the file tells."""
        output = network(x / torch.hypot(alpha, sigma)[:, None], teacher.levels.index(alpha, sigma).round().long())
        P, Q = teacher.output_coefficients(alpha, sigma)
        return P[:, None] * x + Q[:, None] * output

    torch.testing.assert_close(sample(snapped, foreign, noise, readouts=True), expected, rtol=1e-9, atol=1e-9)
    continuous = own(INTEGERS, prediction, "index")
    assert snap_program(program, continuous.description()) is program


def test_labels_are_passed_as_the_network_takes_them() -> None:
    seen: dict[str, Any] = {}

    def network(x: Tensor, classes: Tensor, *, t: Tensor) -> tuple[Tensor]:
        seen.update(classes=classes, t=t)
        return (torch.cat([x, 0 * x], dim=1),)

    common = {"shape": (2, 3, 3), "prediction": "eps", "noise_schedule": "vp", "num_classes": 4}
    x, level, labels = torch.randn(3, 2, 3, 3), torch.full((3,), 0.7), torch.tensor([0, 3, -1])
    globals()["_network"] = lambda: network
    target = f"{__name__}._network"
    teacher = load_own(target, call="x, label, t=time", null_label=4, **common)
    teacher(x, level, level, labels)
    assert seen["classes"].tolist() == [0, 3, 4] and seen["t"].dtype == torch.float32
    Guided(teacher, 2.0, teacher.null_cond)(x, level, level, labels)
    assert seen["classes"].tolist() == [4, 4, 4, 0, 3, 4]
    teacher(x, level, level)
    assert seen["classes"].tolist() == [4, 4, 4]
    load_own(target, call=["x", "label", "t=time"], condition="onehot", **common)(x, level, level, labels)
    assert seen["classes"].tolist() == [[1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
    always = load_own(target, call="x, label, t=time", **common)
    with pytest.raises(ValueError, match="needs a class label"):
        always(x, level, level)
    with pytest.raises(ValueError, match="was not trained without a class"):
        always.null_cond(labels)
    with pytest.raises(ValueError, match="num_classes=0 does not go with"):
        load_own(target, call="x, label, t=time", **{**common, "num_classes": 0})


def test_the_network_stays_frozen_and_its_buffers_as_they_were() -> None:
    network, teacher = integer_teacher("v")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    teacher.train()
    x, level = torch.randn(4, 6, dtype=torch.float64), torch.full((4,), 0.7, dtype=torch.float64)
    assert torch.equal(teacher(x, level, level), teacher(x, level, level))
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any(module.training for module in network.modules())
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key])


def test_float32_states_convert_in_float32_and_float64_in_float64() -> None:
    network = nn.Linear(6, 6).bfloat16()
    teacher = OwnTeacher(lambda x, time: network(x), convention("eps", "schedule"), make_path("vp"), (6,), (1.0, 0.01))
    whole = OwnTeacher(_Linear(network), convention("eps", "schedule"), make_path("vp"), (6,), (1.0, 0.01))
    level = torch.full((2,), 0.7)
    with pytest.raises(RuntimeError):
        teacher(torch.randn(2, 6), level, level)  # a plain function is given what it is asked with
    assert whole(torch.randn(2, 6), level, level).dtype == torch.float32
    assert whole(torch.randn(2, 6).double(), level.double(), level.double()).dtype == torch.float64
    assert whole(torch.randn(2, 6).bfloat16(), level, level).dtype == torch.float32


class _Linear(nn.Module):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        assert time.dtype == torch.float32
        return self.layer(x)


def test_a_target_is_imported_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_network.py").write_text(
        "import torch\ndef load(size):\n    return torch.nn.Linear(size, size)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    settings = {"shape": [6], "prediction": "denoised", "noise_schedule": "flow", "call": "x"}
    teacher = load_own("my_own_network.load", arguments={"size": 6}, **settings)
    assert teacher.name == "my_own_network.load" and teacher.shape == (6,) and teacher.noise_range == (1.0, 0.001)
    other = load_own("my_own_network.load", arguments={"size": 6}, time_scale=2.0, **settings)
    other.network.load_state_dict(teacher.network.state_dict())
    assert other.fingerprint() != teacher.fingerprint()
    other = load_own("my_own_network.load", arguments={"size": 6}, **settings)
    other.network.load_state_dict(teacher.network.state_dict())
    assert other.fingerprint() == teacher.fingerprint()
    for target in ("my_own_network.lode", "no_such_module.load", "my_own_network"):
        with pytest.raises(ValueError, match="cannot be imported"):
            load_own(target, **settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction": "score"}, "model.prediction 'score' is unknown"),
        ({"time": "seconds"}, "model.time 'seconds' is unknown"),
        ({"noise_schedule": "vpp"}, "path 'vpp' is unknown"),
        ({"time": "index"}, "needs a discrete noise_schedule"),
        ({"discrete_times": True}, "needs time=index"),
        ({"noise_schedule": DISCRETE, "prediction": "flow"}, "needs a continuous noise_schedule"),
        ({"noise_schedule": {"name": "discrete", "betas": [0.1, 1.0]}}, "must fall strictly"),
        ({"noise_schedule": {"name": "discrete", "betas": 0.1}}, "must be a list of numbers"),
        ({"call": "x, t"}, "model.call names 't'"),
        ({"target": "builtins.dict"}, "must return a module or a function"),
        ({"target": "solverdistill.teachers.mixture.toy_mixture"}, "not a Teacher"),
    ],
)
def test_mistakes_are_one_sentence(change: dict[str, Any], message: str) -> None:
    settings = {"target": "torch.nn.Identity", "shape": [6], "prediction": "v", "noise_schedule": "vp", **change}
    with pytest.raises(ValueError, match=message):
        load_own(**settings)


def test_an_output_of_another_shape_is_told() -> None:
    teacher = OwnTeacher(lambda x, time: x[:, :3], convention("v", "schedule"), make_path("vp"), (6,), (1.0, 0.01))
    with pytest.raises(ValueError, match=r"returns \(2, 3\) for x of shape \(2, 6\)"):
        teacher(torch.randn(2, 6), torch.full((2,), 0.7), torch.full((2,), 0.7))
