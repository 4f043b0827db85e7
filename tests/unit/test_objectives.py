"""Distances and objectives against direct formulas, and LPIPS with weights that the test makes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from solverdistill import Grid, families
from solverdistill.denoisers.wrappers import Counted
from solverdistill.objectives.distances import distance, feature_mse, mse
from solverdistill.objectives.features import feature_network, inception_weights_path
from solverdistill.objectives.local_truncation import LocalTruncation
from solverdistill.objectives.lpips import LPIPS, weights_path
from solverdistill.objectives.published_epd import PublishedEPD
from solverdistill.objectives.rollout import Trajectory, endpoint
from solverdistill.programs.playing import sample
from solverdistill.references.batch import Batch
from solverdistill.teachers.mixture import Mixture, toy_mixture

FAMILY = families.build("epd", Grid("polynomial", 3), afs=True)


def batch() -> Batch:
    noise = torch.randn(5, 6, dtype=torch.float64)
    targets = torch.randn(3, 5, 6, dtype=torch.float64)
    return Batch(noise, targets, targets[-1])


def test_distances_follow_their_formulas() -> None:
    a, b = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)
    d = (a - b).flatten(1)
    torch.testing.assert_close(distance("mse")(a, b), (d**2).mean(1))
    torch.testing.assert_close(distance("l1")(a, b), d.abs().mean(1))
    torch.testing.assert_close(distance("log_mse")(a, b), (d**2).mean(1).log())
    c = 0.00054 * math.sqrt(12)
    torch.testing.assert_close(distance("pseudo_huber")(a, b), ((d**2).sum(1) + c**2).sqrt() - c)
    with pytest.raises(ValueError, match="distance 'l7' is unknown"):
        distance("l7")


def test_trajectory_sums_states_and_end_point() -> None:
    data, teacher, params = batch(), toy_mixture(), FAMILY.init(0)
    states = sample(FAMILY.program(params), teacher, data.noise, readouts=True)
    terms = (states - data.targets).pow(2).mean(dim=(1, 2))
    loss = Trajectory("mse", intermediate=0.5)(FAMILY, params, teacher, data)
    torch.testing.assert_close(loss, terms[-1] + 0.5 * terms[:-1].sum())
    torch.testing.assert_close(endpoint()(FAMILY, params, teacher, data), terms[-1])


def test_feature_loss_is_added_and_needs_an_extractor() -> None:
    data, teacher, params = batch(), toy_mixture(), FAMILY.init(0)

    def features(x: torch.Tensor) -> torch.Tensor:
        return x[:, :2] ** 2

    end = sample(FAMILY.program(params), teacher, data.noise)
    expected = endpoint()(FAMILY, params, teacher, data) + 3 * feature_mse(features, end, data.end).mean()
    torch.testing.assert_close(endpoint("mse", features, 3.0)(FAMILY, params, teacher, data), expected)
    with pytest.raises(ValueError, match="needs a feature extractor"):
        Trajectory(feature_weight=1.0)


def test_lpips_says_which_file_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"needs vgg16-397923af.pth \(528 MB\): download https://.* put it at"):
        distance("lpips_vgg")
    with pytest.raises(ValueError, match="backbone 'resnet' is unknown"):
        LPIPS("resnet")


class Latents(Mixture):
    """The toy mixture as latents of images twice as large."""

    def __init__(self) -> None:
        toy = toy_mixture()
        super().__init__(toy.means, toy.weights, toy.stds)
        self.decoder = torch.nn.Linear(6, 12).double().requires_grad_(False)

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        return self.decoder(samples)


def gradients(objective: Any, teacher: Mixture, data: Batch) -> dict[str, torch.Tensor]:
    params = {name: value.requires_grad_() for name, value in FAMILY.init(0).items()}
    loss = objective(FAMILY, params, teacher, data)
    return dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True))


def test_losses_of_images_reach_the_params_through_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, data, asked = Latents(), batch(), []

    def decode(x: torch.Tensor) -> torch.Tensor:
        asked.append((tuple(x.shape), torch.is_grad_enabled()))
        return teacher.decode(x)

    def perceptual(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        assert a.shape[1] == b.shape[1] == 12
        return mse(a, b)

    monkeypatch.setattr("solverdistill.objectives.distances.LPIPS", lambda net: perceptual)
    features = endpoint("mse", lambda images: images[:, :4] ** 2, 2.0)
    for objective in (endpoint("lpips_vgg"), features, PublishedEPDLoss(), LocalTruncation("lpips_vgg")):
        chosen: Any = replace(objective, decode=decode)  # type: ignore[type-var]
        asked.clear()
        found = gradients(chosen, teacher, data)
        assert {grad for _, grad in asked} == {True, False} and {shape for shape, _ in asked} == {(5, 6)}
        assert all(bool(value.isfinite().all()) for value in found.values())
        assert all(float(value.abs().max()) > 0 for value in found.values())

    end, latent = sample(FAMILY.program(FAMILY.init(0)), teacher, data.noise), data.end
    expected = mse(teacher.decode(end), teacher.decode(latent)).mean()
    loss = replace(endpoint("lpips_vgg"), decode=teacher.decode)
    torch.testing.assert_close(loss(FAMILY, FAMILY.init(0), teacher, data), expected)
    torch.testing.assert_close(
        replace(endpoint(), decode=decode)(FAMILY, FAMILY.init(0), teacher, data),
        endpoint()(FAMILY, FAMILY.init(0), teacher, data),
    )


@dataclass(frozen=True)
class PublishedEPDLoss(PublishedEPD):
    """The last loss of the published schedule, as an objective."""

    features: Any = torch.square

    def __call__(self, family: Any, params: Any, denoiser: Any, data: Batch) -> torch.Tensor:
        *_, last = self.steps(family, lambda: params, denoiser, data)
        return last.loss


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_lpips_is_a_differentiable_distance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import squeezenet1_1

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights_path("squeeze").parent.mkdir(parents=True)
    torch.save(squeezenet1_1(weights=None).state_dict(), weights_path("squeeze"))
    lpips = distance("lpips_squeeze")
    a, b = torch.rand(3, 1, 8, 8, requires_grad=True), torch.rand(3, 1, 8, 8)
    value = lpips(a, b)
    assert value.shape == (3,) and bool((value > 0).all())
    torch.testing.assert_close(lpips(b, b), torch.zeros(3))
    value.sum().backward()
    assert a.grad is not None and float(a.grad.abs().sum()) > 0


def test_teacher_forcing_is_the_sum_of_single_steps() -> None:
    data, teacher, params = batch(), toy_mixture(), FAMILY.init(0)
    loss = LocalTruncation()(FAMILY, params, teacher, data)
    states, expected = [data.noise * 80.0, *data.targets], torch.zeros((), dtype=torch.float64)
    for i in range(FAMILY.steps):
        end, _ = FAMILY.solve_step(i, states[i], (), teacher, params)
        expected = expected + (end - states[i + 1]).pow(2).mean()
    torch.testing.assert_close(loss, expected)
    counted = Counted(teacher)
    LocalTruncation()(FAMILY, params, counted, data)
    assert (counted.calls, counted.images) == (2, 5 * FAMILY.nfe)
    plugin = families.build("epd_ipndm", Grid("polynomial", 3))
    with pytest.raises(ValueError, match="needs a student without history"):
        LocalTruncation()(plugin, plugin.init(0), teacher, data)


def test_inception_says_which_file_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"inception_v3_google-0cc3c7bd.pth \(104 MB\): download https://"):
        feature_network("inception")
    with pytest.raises(ValueError, match="feature extractor 'clip' is unknown"):
        feature_network("clip")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_inception_features_are_differentiable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import inception_v3

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    inception_weights_path().parent.mkdir(parents=True)
    torch.save(inception_v3(weights=None, init_weights=False).state_dict(), inception_weights_path())
    network = feature_network("inception")
    image = torch.rand(1, 1, 8, 8, requires_grad=True)
    value = network(image)
    assert value.shape == (1, 2048)
    value.sum().backward()
    assert image.grad is not None and float(image.grad.abs().sum()) > 0
