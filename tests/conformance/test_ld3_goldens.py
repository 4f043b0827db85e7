"""LD3 against the official code: samplers, time parametrisation, gradients, and the trainer end to end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gas_goldens import (
    LD3_RANGE,
    PublishedUniPC,
    denoiser_of,
    golden,
    ld3_family,
    ld3_family_of,
    names,
    params_of,
    relative,
)
from torch import Tensor

from solverdistill.families import build
from solverdistill.families.learned import ld3
from solverdistill.families.learned.ld3 import LD3
from solverdistill.fits.gradient.relaxed_noise import accept, move, prior_bound, project, shift_rate
from solverdistill.noise.grids import Grid
from solverdistill.noise.paths import EDM, Discrete
from solverdistill.objectives.distances import mse
from solverdistill.programs.playing import sample

SAMPLING = [name for name in names("ld3_*_nfe*") if "train" not in name]
TRAINING = {
    "edm_ipndm_o3": ("edm", "ipndm", None, 1e-8),
    "edm_unipc_bh1_o3": ("edm", "unipc", "bh1", 1e-6),
    "ldm_unipc_bh2_o3": ("ldm", "unipc", "bh2", 1e-6),
}


@pytest.mark.parametrize("name", SAMPLING)
def test_samples_and_network_calls_equal_the_official_ones(name: str) -> None:
    """The official UniPC rounds sums to float32. UniPC and DPM-Solver++ call the network once more, for nothing."""
    arrays, calls = golden(name), []
    family, params = ld3_family_of(arrays), params_of(arrays, "param_")
    tolerance = 1e-6 if "unipc" in name else 1e-11
    states = sample(family.program(params), denoiser_of(arrays), arrays["latent"], readouts=True, callback=calls.append)
    assert relative(states[-1], arrays["x0"]) < tolerance
    if "x_states" in arrays:
        assert relative(states, arrays["x_states"]) < tolerance
    assert relative(arrays["latent"] * family.initial_scale(family.prepare(params)), arrays["x_T"]) < 1e-14
    times = arrays["net_calls_t"][: arrays["nfe"]]
    heard = torch.tensor([call.sigma / call.alpha for call in calls], dtype=torch.float64)
    assert relative(heard, family.path.clock(times)) < 1e-11
    images = torch.stack([call.x / (call.alpha if "edm" in name else 1.0) for call in calls])
    assert relative(images, arrays["net_calls_x"][: arrays["nfe"]]) < tolerance
    assert len(calls) == arrays["nfe"] == family.nfe
    assert arrays["n_net_calls"] == arrays["nfe"] + ("dpmpp" in name or "unipc" in name)


@pytest.mark.parametrize("kind", LD3_RANGE)
@pytest.mark.parametrize("steps", [4, 6, 10])
@pytest.mark.parametrize("state", ["fresh", "perturbed"])
def test_time_parametrisation_equals_the_official_one(kind: str, steps: int, state: str) -> None:
    arrays, prefix = golden("ld3_time_param"), f"{kind}_n{steps}_{state}"
    family = ld3_family(kind, steps, "euler", None, None)
    params = {name: arrays[f"{prefix}_{name}"] for name in ("params1", "params2")}
    if state == "fresh":
        for name, value in family.init(0).items():
            torch.testing.assert_close(value, params[name], rtol=0.0, atol=1e-15)
    timeline = family.prepare(params)
    told = torch.stack([timeline.told(i).sigma for i in range(steps + 1)])
    torch.testing.assert_close(timeline.s, arrays[f"{prefix}_t1"], rtol=1e-13, atol=0.0)
    torch.testing.assert_close(told, family.path.sigma(arrays[f"{prefix}_t2"]), rtol=1e-13, atol=0.0)
    ends = family.path.half_log_snr(torch.tensor(LD3_RANGE[kind], dtype=torch.float64))
    expected = torch.tensor([arrays[f"{kind}_lambda_{end}"] for end in ("min", "max")], dtype=torch.float64)
    torch.testing.assert_close(ends, expected, rtol=1e-13, atol=0.0)


def default_grid(skip: str) -> Tensor:
    """The grids that the official code offers to start from; its quadratic one is quadratic in the step's index."""
    if skip == "time_quadratic":
        return 0.002 + (80.0 - 0.002) * (1 - torch.arange(11, dtype=torch.float64) / 10) ** 2
    rules = {
        "edm": Grid("polynomial", 10),
        "logSNR": Grid("logsnr", 10),
        "time_uniform": Grid("polynomial", 10, rho=1.0),
    }
    return rules[skip].values(EDM())


@pytest.mark.parametrize("skip", ["edm", "logSNR", "time_uniform", "time_quadratic"])
def test_default_grids_equal_the_official_ones_and_are_inverted(skip: str) -> None:
    official = golden("ld3_time_param")[f"edm_skip_{skip}_n10"]
    torch.testing.assert_close(default_grid(skip), official, rtol=1e-12, atol=0.0)
    family = build("ld3", official, base="euler")
    assert isinstance(family, LD3)
    torch.testing.assert_close(family.prepare(family.init(0)).s, official, rtol=1e-12, atol=0.0)


def gradients(family: LD3, params: dict[str, Tensor], arrays: dict[str, Any]) -> dict[str, Tensor]:
    """Gradient of the mean square loss to end points of a fine solve."""
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    end = sample(family.program(leaves), denoiser_of(arrays), arrays["latents"])
    mse(end, arrays["teacher_x0"]).mean().backward()
    return {name: value.grad for name, value in leaves.items() if value.grad is not None}


PUBLISHED = [("edm", "bh1", 0.209), ("ldm", "bh2", 0.086)]


@pytest.mark.parametrize(("kind", "variant", "missing"), PUBLISHED)
def test_the_official_unipc_gradient_misses_a_term(
    kind: str, variant: str, missing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours equals finite differences. The official code takes the matrix of step ratios for a constant."""
    arrays = golden(f"ld3_train_{kind}_unipc_{variant}_o3_nfe4")
    family = ld3_family(kind, 6, "unipc", 3, variant)
    stored = golden("ld3_time_param")
    params = {name: stored[f"{kind}_n6_perturbed_{name}"] for name in ("params1", "params2")}
    params["params2"] = params["params2"] * 1e-3  # inside the window, which depends on params1 but passes no gradient
    ours = gradients(family, params, arrays)["params1"]
    step = 1e-5
    differences = torch.zeros_like(ours)
    for k in range(len(ours)):
        shifted = []
        for sign in (1, -1):
            moved = {name: value.clone() for name, value in params.items()}
            moved["params1"][k] += sign * step
            end = sample(family.program(moved), denoiser_of(arrays), arrays["latents"])
            shifted.append(mse(end, arrays["teacher_x0"]).mean())
        differences[k] = (shifted[0] - shifted[1]) / (2 * step)
    assert relative(ours, differences) < 1e-6
    monkeypatch.setitem(ld3.BASES, "unipc", PublishedUniPC)
    published_family = ld3_family(kind, 6, "unipc", 3, variant)
    torch.testing.assert_close(published_family.program(params).B, family.program(params).B, rtol=0.0, atol=0.0)
    published = gradients(published_family, params, arrays)["params1"]
    assert ((published - ours).norm() / ours.norm()).item() == pytest.approx(missing, abs=2e-3)


class PublishedTrainer:
    """The official schedule: rounds over training and validation noise, which all move inside the ball.

    Its loss rounds images to float32. Params are those of the best validation at the start of every round and after
    five validations without improvement.
    """

    def __init__(self, family: LD3, arrays: dict[str, Any]) -> None:
        self.family, self.arrays, self.denoiser = family, arrays, denoiser_of(arrays)
        self.moved, self.trained = arrays["latents"].clone(), arrays["n_train"]
        self.params = {name: value.requires_grad_() for name, value in family.init(0).items()}
        self.best, self.best_params, self.worse = float("inf"), self.copy(), 0
        self.events: list[tuple[dict[str, Tensor], float, float]] = []
        first, second = self.params["params1"], self.params["params2"]
        self.optimizers = [
            torch.optim.RMSprop([first], lr=arrays["lr_time_1"], momentum=0.9, alpha=0.99),
            torch.optim.SGD([second], lr=arrays["lr_time_2"]),
        ]

    def copy(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.params.items()}

    @torch.no_grad()
    def reload(self) -> None:
        for name, value in self.params.items():
            value.copy_(self.best_params[name])

    def loss(self, noise: Tensor, rows: slice) -> Tensor:
        end = sample(self.family.program(self.params), self.denoiser, noise)
        return mse(end.float(), self.arrays["teacher_x0"][rows].float()).double()

    @torch.no_grad()
    def validate(self) -> None:
        rows = slice(self.trained, None)
        loss = self.loss(self.moved[rows], rows).mean().item()
        self.worse += 1
        if loss < self.best:
            self.best, self.best_params, self.worse = loss, self.copy(), 0
        if self.worse == 5:
            self.reload()
        self.events.append((self.copy(), self.best, loss))

    def round(self, offsets: bool) -> None:
        self.reload()
        self.worse = 0
        self.validate()
        size = self.arrays["batch_size"]
        for start in range(0, len(self.moved), size):
            rows = slice(start, start + size)
            noise = self.moved[rows].clone().requires_grad_()
            for value in (*self.params.values(), noise):
                value.grad = None
            loss = self.loss(noise, rows)
            loss.mean().backward()
            assert noise.grad is not None
            candidate = move(noise, noise.grad, self.arrays["shift_lr"])
            if start < self.trained:
                for value, optimizer in zip(self.params.values(), self.optimizers[: 1 + offsets], strict=False):
                    torch.nn.utils.clip_grad_norm_([value], 1.0)
                    optimizer.step()
                self.validate()
            candidate = project(candidate, self.arrays["latents"][rows], self.arrays["prior_bound"])
            with torch.no_grad():
                new_loss = self.loss(candidate, rows)
            self.moved[rows] = accept(candidate, noise, new_loss, loss)


@pytest.mark.parametrize("name", TRAINING)
def test_the_trainer_equals_the_official_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rounds, the first without offsets. UniPC needs the official, incomplete gradient."""
    kind, base, variant, tolerance = TRAINING[name]
    monkeypatch.setitem(ld3.BASES, "unipc", PublishedUniPC)
    arrays = golden(f"ld3_train_{name}_nfe4")
    trainer = PublishedTrainer(ld3_family(kind, 4, base, 3, variant), arrays)
    for k in range(arrays["rounds_v1"] + arrays["rounds_v2"]):
        trainer.round(offsets=k >= arrays["rounds_v1"])
    assert len(trainer.events) == len(arrays["trace_iter"])
    for k, (params, best, loss) in enumerate(trainer.events):
        for key, value in params.items():
            torch.testing.assert_close(value, arrays[f"trace_{key}"][k], rtol=0.0, atol=tolerance)
        assert best == pytest.approx(arrays["trace_best"][k].item(), rel=1e-6, abs=1e-7)
        assert loss == pytest.approx(arrays["trace_valid_calls"][k].item(), rel=1e-6, abs=1e-7)
    for key, rows in (("train", slice(0, arrays["n_train"])), ("valid", slice(arrays["n_train"], None))):
        torch.testing.assert_close(trainer.moved[rows], arrays[f"final_{key}_latents"], rtol=0.0, atol=tolerance)
    for key, value in trainer.best_params.items():
        torch.testing.assert_close(value, arrays[f"ckpt_{key}"], rtol=0.0, atol=tolerance)
    timeline = trainer.family.prepare(trainer.best_params)
    told = torch.stack([timeline.told(i).sigma for i in range(5)])
    solver_times, network_times = arrays["ckpt_best_t_steps"].chunk(2)
    torch.testing.assert_close(timeline.s, solver_times, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(told, trainer.family.path.sigma(network_times), rtol=1e-6, atol=0.0)


def test_the_published_constants_of_the_ball() -> None:
    arrays = golden("ld3_train_edm_ipndm_o3_nfe4")
    assert prior_bound(dimension=6, nfe=4, gamma=0.05) == pytest.approx(arrays["prior_bound"])
    assert shift_rate(nfe=4) == pytest.approx(arrays["shift_lr"])
    assert prior_bound(dimension=3072, nfe=10) == pytest.approx(0.0307, abs=1e-4)
    assert prior_bound(dimension=3072, nfe=4) == pytest.approx(0.192)


@pytest.mark.parametrize("name", TRAINING)
def test_the_teacher_of_the_trainer_is_unipc(name: str) -> None:
    kind, _, _, _ = TRAINING[name]
    arrays = golden(f"ld3_train_{name}_nfe4")
    rule = Grid("polynomial", 20) if kind == "edm" else Grid("time_uniform", 20, 1.0, 1e-3)
    path = EDM() if kind == "edm" else Discrete()
    torch.testing.assert_close(rule.values(path), arrays["teacher_t"], rtol=1e-12, atol=0.0)
    deviations = []
    for variant in ("bh1", "bh2"):
        family = build("unipc", rule, path, order=3, variant=variant)
        end = sample(family.program(), denoiser_of(arrays), arrays["latents"])
        deviations.append(relative(end, arrays["teacher_x0"]))
    assert min(deviations) < 1e-6
