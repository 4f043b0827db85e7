"""The self-check of teachers: right settings pass, every wrong one is told by its name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import draw_data
from safetensors.torch import save_file
from torch import Tensor, nn

from solverdistill.denoisers.base import Teacher
from solverdistill.noise.paths import Path as NoisePath
from solverdistill.noise.paths import make_path
from solverdistill.teachers.checking.bench import CERTAIN, LIKELY, NOTE, RIGHT, UNSURE, WRONG, Bench, Finding, judge
from solverdistill.teachers.checking.check import check_teacher
from solverdistill.teachers.checking.sample_files import read_samples
from solverdistill.teachers.mixture import Mixture, toy_mixture
from solverdistill.teachers.own.conventions import Convention
from solverdistill.teachers.own.native_levels import make_schedule, usual_range
from solverdistill.teachers.own.teacher import OwnTeacher

MIXTURE = toy_mixture()
DATA = draw_data(MIXTURE, 32, torch.Generator().manual_seed(3)).float()
RANGES = {"vp": (1.0, 0.001), "flow": (0.99, 0.001)}


class Network(nn.Module):
    """The exact answer on a schedule, as a network with its own prediction type and direction or unit of time."""

    def __init__(self, schedule: str | NoisePath, prediction: str, reverse: bool = False, steps: int = 0) -> None:
        super().__init__()
        self.path, self.prediction, self.reverse, self.steps = make_path(schedule), prediction, reverse, steps

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        share = (time.double() + 1) / self.steps if self.steps else time.double()
        a, s = self.path.alpha_sigma(1 - share if self.reverse else share)
        y = x.double()
        denoised = MIXTURE(y, a, s)
        a, s = a[:, None], s[:, None]
        noise = (y - a * denoised) / s
        if self.prediction == "v":
            return ((a * noise - s * denoised) / torch.hypot(a, s)).to(x.dtype)
        return {"eps": noise, "denoised": denoised, "flow": noise - denoised}[self.prediction].to(x.dtype)


def teacher(network: Any, schedule: str, prediction: str, time: str = "schedule", **options: Any) -> OwnTeacher:
    noise_range = options.pop("noise_range", RANGES[schedule])
    return OwnTeacher(network, Convention(prediction, time, **options), make_path(schedule), (6,), noise_range)


def findings(subject: Teacher, data: Tensor | None = None) -> dict[str, Finding]:
    return {finding.check: finding for finding in check_teacher(Bench(subject, data))[0]}


def wrong(found: dict[str, Finding]) -> set[str]:
    return {name for name, finding in found.items() if finding.verdict == WRONG}


@pytest.mark.parametrize("data", [None, DATA], ids=["generated", "given"])
@pytest.mark.parametrize(
    ("schedule", "prediction"), [("vp", "eps"), ("vp", "v"), ("vp", "denoised"), ("flow", "eps"), ("flow", "flow")]
)
def test_right_settings_pass(schedule: str, prediction: str, data: Tensor | None) -> None:
    found = findings(teacher(Network(schedule, prediction), schedule, prediction), data)
    assert wrong(found) == set()
    assert found["prediction, time, schedule"].verdict == RIGHT
    assert found["scaling"].verdict == (NOTE if data is None else RIGHT)
    assert found["gradient in level"].verdict == RIGHT and found["forward mode"].verdict == RIGHT


def test_teachers_that_bring_their_settings_pass() -> None:
    for data in (None, DATA):
        found = findings(MIXTURE, data)
        assert wrong(found) == set() and found["prediction, time, schedule"].measured == "not tried"
    classes = Mixture(torch.eye(4) * 2, torch.ones(4), torch.full((4,), 0.2), labels=[0, 0, 1, 1])
    assert wrong(findings(classes)) == set()


@pytest.mark.parametrize("data", [None, DATA], ids=["generated", "given"])
@pytest.mark.parametrize(
    ("schedule", "true", "said"),
    [("vp", "eps", "v"), ("vp", "v", "eps"), ("vp", "eps", "denoised"), ("flow", "flow", "eps"), ("flow", "v", "flow")],
)
def test_a_wrong_prediction_type_is_told(schedule: str, true: str, said: str, data: Tensor | None) -> None:
    found = findings(teacher(Network(schedule, true), schedule, said), data)
    assert found["prediction, time, schedule"].verdict == WRONG
    assert f"read with prediction={true};" in found["prediction, time, schedule"].sentence
    assert "denoising" in wrong(found)


@pytest.mark.parametrize("data", [None, DATA], ids=["generated", "given"])
@pytest.mark.parametrize("schedule", ["vp", "flow"])
def test_a_reversed_time_is_told(schedule: str, data: Tensor | None) -> None:
    found = findings(teacher(Network(schedule, "v", reverse=True), schedule, "v"), data)
    assert "read with time=reversed;" in found["prediction, time, schedule"].sentence
    assert "prediction, time, schedule" in wrong(found) and (data is None or "denoising" in wrong(found))


LINEAR = "{name:discrete,beta_schedule:linear,beta_start:1e-4,beta_end:0.02,steps:1000}"
BETAS = {"name": "discrete", "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "steps": 1000}


@pytest.mark.parametrize("data", [None, DATA], ids=["generated", "given"])
@pytest.mark.parametrize(
    ("true", "said", "prediction", "advice"),
    [
        ("vp", "cosine", "v", ["noise_schedule=vp"]),
        ("vp", "flow", "eps", ["noise_schedule=vp"]),
        ("flow", "vp", "v", ["noise_schedule=flow"]),
        ("cosine", "vp", "v", ["noise_schedule=cosine"]),
        ("edm", "vp", "denoised", ["noise_schedule=edm"]),
        (BETAS, "discrete", "eps", [f"noise_schedule={LINEAR}", "noise_schedule=vp time=schedule"]),
    ],
    ids=lambda value: str(value)[:12],
)
def test_a_wrong_schedule_is_told(
    true: Any, said: str, prediction: str, advice: list[str], data: Tensor | None
) -> None:
    path, own = make_schedule(true), make_schedule(said)
    time = "index" if own.name == "discrete" else "schedule"
    start, end = usual_range(own)
    ends = (0.99 if prediction == "eps" and own.name != "discrete" else start, end)
    network = Network(path, prediction, steps=1000 if time == "index" else 0)
    found = findings(OwnTeacher(network, Convention(prediction, time), own, (6,), ends), data)
    assert found["prediction, time, schedule"].verdict == WRONG
    assert any(f"read with {words};" in found["prediction, time, schedule"].sentence for words in advice)


@pytest.mark.parametrize("data", [None, DATA], ids=["generated", "given"])
def test_a_wrong_unit_of_time_is_told(data: Tensor | None) -> None:
    found = findings(teacher(Network("vp", "v"), "vp", "v", time_scale=1000.0), data)
    assert found["prediction, time, schedule"].verdict == WRONG
    assert "read with time_scale=1;" in found["prediction, time, schedule"].sentence


@pytest.mark.parametrize(
    ("data", "unit"),
    [(2 * DATA, "x / 2"), (DATA / 2, "2 x"), ((DATA + 1) / 2, "2 x - 1"), (127.5 * (DATA + 1), "x / 127.5 - 1")],
)
def test_a_wrong_scaling_is_told(data: Tensor, unit: str) -> None:
    found = findings(teacher(Network("vp", "eps"), "vp", "eps"), data)
    assert found["scaling"].verdict == WRONG and f"better as {unit}," in found["scaling"].sentence
    assert found["prediction, time, schedule"].verdict == NOTE


def test_a_wrong_noise_range_is_told() -> None:
    found = findings(teacher(Network("vp", "v"), "vp", "v", noise_range=(0.15, 0.001)), DATA)
    assert wrong(found) == {"first level"}
    (start,) = re.findall(r"begins too low \(beginning at (\S+) mends it\)", found["first level"].sentence)
    assert wrong(findings(teacher(Network("vp", "v"), "vp", "v", noise_range=(float(start), 0.001)), DATA)) == set()
    found = findings(teacher(Network("vp", "v"), "vp", "v", noise_range=(1.0, 0.2)), DATA)
    assert wrong(found) == {"last level"}
    (end,) = re.findall(r"ends too high \(ending at (\S+) mends it\)", found["last level"].sentence)
    assert wrong(findings(teacher(Network("vp", "v"), "vp", "v", noise_range=(1.0, float(end))), DATA)) == set()


class Faulty(Network):
    """The exact network with one fault."""

    def __init__(self, fault: str) -> None:
        super().__init__("vp", "denoised")
        self.fault = fault

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        if self.fault == "no gradients":
            with torch.no_grad():
                return super().forward(x, time)
        if self.fault == "detached time":
            return super().forward(x, time.detach())
        result = super().forward(x, time)
        if self.fault == "noise":
            return result + 0.01 * torch.randn_like(result)
        if self.fault == "batch":
            return result + 0.1 * result.mean(0)
        return result.roll(1, dims=1)


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("no gradients", "gradient in x"),
        ("no gradients", "gradient in level"),
        ("noise", "determinism"),
        ("batch", "independence"),
        ("rolled", "symmetry"),
    ],
)
def test_faults_of_the_network_are_told(fault: str, check: str) -> None:
    if fault == "no gradients" and check == "gradient in level":
        found = findings(Absolute(MIXTURE), DATA)
        assert found["freedom of scale"].verdict == WRONG and found["gradient in level"].verdict == WRONG
        return
    if check == "gradient in x":
        found = findings(teacher(Faulty(fault), "vp", "denoised"), DATA)
        assert {"gradient in x", "gradient in level"} <= wrong(found)
        return
    found = findings(teacher(Faulty(fault), "vp", "denoised"), DATA)
    assert check in wrong(found)


def test_a_detached_time_is_noted() -> None:
    class EpsOfDetached(Faulty):
        def __init__(self) -> None:
            super().__init__("detached time")
            self.prediction = "eps"

    found = findings(teacher(EpsOfDetached(), "vp", "eps"), DATA)
    assert found["gradient in level"].verdict == NOTE and wrong(found) == set()


class Trained(Network):
    """The exact velocity, but where there is hardly any noise, which training hardly sees."""

    error = 1.0

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return super().forward(x, time) + self.error * torch.exp(-time / 0.01)[:, None].to(x.dtype) * x


@pytest.mark.parametrize("data", [None, DATA], ids=["generated", "given"])
@pytest.mark.parametrize("error", [1.0, 4.0])
def test_a_trained_network_is_not_blamed_for_errors_that_no_sample_shows(error: float, data: Tensor | None) -> None:
    network = Trained("flow", "flow")
    network.error = error
    found, curve = check_teacher(Bench(teacher(network, "flow", "flow", noise_range=(1.0, 0.0002)), data))
    assert curve.error[-1] > 1.15 * curve.ratio[-1]  # worse than leaving the state as it is
    assert wrong({finding.check: finding for finding in found}) == set()
    assert found[1].verdict == RIGHT


def test_verdicts_say_how_sure_they_are() -> None:
    few = torch.tensor([1.0, -0.5, 2.0, -0.4], dtype=torch.float64)
    assert judge(few) == (True, UNSURE) and judge(-few) == (False, UNSURE)
    assert judge(few.repeat(8)) == (True, LIKELY) and judge(few.repeat(40)) == (True, CERTAIN)
    assert judge(torch.tensor([1.0, float("nan")])) == (True, CERTAIN)
    assert judge(torch.ones(1)) == (True, UNSURE) and judge(torch.full((3,), -2.0)) == (False, CERTAIN)
    generated = findings(teacher(Network("vp", "eps"), "vp", "v"))["prediction, time, schedule"]
    given = findings(teacher(Network("vp", "eps"), "vp", "v"), DATA)["prediction, time, schedule"]
    assert (generated.verdict, generated.sure) == (WRONG, LIKELY) and (given.verdict, given.sure) == (WRONG, CERTAIN)


def test_what_denoises_under_no_reading_gets_no_advice() -> None:
    torch.manual_seed(0)
    last = nn.Linear(32, 6)
    nn.init.normal_(last.weight)
    network = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), last)
    for data in (None, DATA):
        found = findings(
            OwnTeacher(network, Convention("v", "schedule", call=("x",)), make_path("vp"), (6,), (1.0, 0.001)), data
        )
        assert "denoising" in wrong(found) and found["denoising"].sure == LIKELY
        assert "no other reading that was tried mends it; was it trained?" in found["denoising"].sentence
        assert found["prediction, time, schedule"].verdict != WRONG


class Absolute(Teacher):
    """A teacher that forgets to normalise its input and its level."""

    def __init__(self, inner: Teacher) -> None:
        super().__init__("absolute", inner.shape)
        self.inner = inner

    def forward(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        return self.inner(x, torch.ones_like(alpha), sigma.detach())


def test_samples_are_read_from_files(tmp_path: Path) -> None:
    from PIL import Image

    pixels = torch.randint(256, (5, 4, 6, 3), dtype=torch.uint8)
    expected = pixels.movedim(-1, 1).float() / 127.5 - 1
    np.save(tmp_path / "a.npy", pixels.numpy())
    torch.save(pixels.movedim(-1, 1), tmp_path / "a.pt")
    save_file({"x": expected.contiguous()}, str(tmp_path / "a.safetensors"))
    (tmp_path / "images").mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image.numpy()).save(tmp_path / "images" / f"{i}.png")
    for name in ("a.npy", "a.pt", "a.safetensors", "images"):
        assert torch.equal(read_samples(str(tmp_path / name), (3, 4, 6), 4), expected[:4]), name
    np.save(tmp_path / "grey.npy", pixels[..., 0].numpy())
    assert read_samples(str(tmp_path / "grey.npy"), (1, 4, 6), 5).shape == (5, 1, 4, 6)
    np.save(tmp_path / "labels.npy", np.arange(5))
    assert read_samples(str(tmp_path / "labels.npy"), (), 3).tolist() == [0, 1, 2]
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError):
        read_samples(str(tmp_path / "objects.npy"), (3, 4, 6), 4)
    with pytest.raises(FileNotFoundError, match=r"b\.npy do not exist"):
        read_samples(str(tmp_path / "b.npy"), (3, 4, 6), 4)
    with pytest.raises(ValueError, match="at least 2 samples of shape"):
        read_samples(str(tmp_path / "a.npy"), (3, 5, 6), 4)
    with pytest.raises(ValueError, match="the teacher's are"):
        Bench(MIXTURE, torch.zeros(4, 5))
