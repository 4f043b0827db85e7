"""The self-check of teachers: right settings pass, every wrong one is told by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import draw_data
from safetensors.torch import save_file
from torch import Tensor, nn

from solverdistill.denoisers.base import Teacher
from solverdistill.noise.paths import make_path
from solverdistill.teachers.checking.bench import NOTE, RIGHT, WRONG, Bench, Finding
from solverdistill.teachers.checking.check import check_teacher
from solverdistill.teachers.checking.sample_files import read_samples
from solverdistill.teachers.mixture import Mixture, toy_mixture
from solverdistill.teachers.own.conventions import Convention
from solverdistill.teachers.own.teacher import OwnTeacher

MIXTURE = toy_mixture()
DATA = draw_data(MIXTURE, 32, torch.Generator().manual_seed(3)).float()
RANGES = {"vp": (1.0, 0.001), "flow": (0.99, 0.001)}


class Network(nn.Module):
    """The exact answer on the vp or flow schedule, as a network with its own prediction type and time direction."""

    def __init__(self, schedule: str, prediction: str, reverse: bool = False) -> None:
        super().__init__()
        self.path, self.prediction, self.reverse = make_path(schedule), prediction, reverse

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        a, s = self.path.alpha_sigma(1 - time.double() if self.reverse else time.double())
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
    assert wrong(found) == {"first level"} and "begins too low" in found["first level"].sentence
    found = findings(teacher(Network("vp", "v"), "vp", "v", noise_range=(1.0, 0.2)), DATA)
    assert wrong(found) == {"last level"} and "ends too high" in found["last level"].sentence


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
