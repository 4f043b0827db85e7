"""GS, its training and its adversarial losses against the official code: goldens of its unmodified functions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gas_goldens import denoiser_of, golden, gs_family, gs_path, names, params_of, relative
from torch import Tensor, nn

from solverdistill.denoisers.wrappers import Guided
from solverdistill.families import build
from solverdistill.families.learned.gas import GAS
from solverdistill.fits.gradient.discriminators import discriminator_loss, generator_loss
from solverdistill.fits.gradient.ema import moving_average
from solverdistill.noise.grids import Grid
from solverdistill.noise.paths import VP, Discrete
from solverdistill.objectives.distances import l1, mse
from solverdistill.programs.playing import Evaluation, sample

SAMPLING = [name for name in names("gs_*") if "_nfe" in name and "grad" not in name]
FRESH = [name for name in SAMPLING if name.endswith("fresh")]
THEORY = [name for name in SAMPLING if "lmspc" not in name]
TOLERANCE = 1e-11


def denoiser_and_cond(arrays: dict[str, Any]) -> tuple[Any, Tensor | None]:
    denoiser = denoiser_of(arrays)
    if "labels" not in arrays:
        return denoiser, None
    return Guided(denoiser, arrays["guidance_scale"], denoiser.null_cond), arrays["labels"]


@pytest.mark.parametrize("name", SAMPLING)
def test_states_times_and_network_calls_equal_the_official_ones(name: str) -> None:
    arrays, calls = golden(name), []
    family, params = gs_family(arrays), params_of(arrays, "param_")
    denoiser, cond = denoiser_and_cond(arrays)
    states = sample(family.program(params), denoiser, arrays["x_T"], cond, readouts=True, callback=calls.append)
    assert relative(states, arrays["x_states"][1:]) < TOLERANCE
    timeline = family.prepare(params).timeline
    torch.testing.assert_close(timeline.s, arrays["t_steps"], rtol=0.0, atol=1e-15)
    network_sigma = torch.tensor([call.sigma / call.alpha for call in calls], dtype=torch.float64)
    for ours, theirs in (
        (timeline.half_log_snr, arrays["lam"]),
        (timeline.alpha, arrays["alpha"]),
        (timeline.sigma, arrays["sigma_vp"]),
        (network_sigma, arrays["net_sigma"][:, 0]),
    ):
        assert relative(ours, theirs) < TOLERANCE
    assert family.nfe == family.depth == len(calls) == arrays["steps"]
    assert sum(value.numel() for value in params.values()) == arrays["n_params"]


@pytest.mark.parametrize("name", SAMPLING)
def test_the_outputs_it_extrapolates_equal_the_official_ones(name: str) -> None:
    """The network's noise is taken at the told time and turned into data with the solver's own level."""
    arrays, calls = golden(name), list[Evaluation]()
    family, params = gs_family(arrays), params_of(arrays, "param_")
    denoiser, cond = denoiser_and_cond(arrays)
    sample(family.program(params), denoiser, arrays["x_T"], cond, callback=calls.append)
    timeline = family.prepare(params).timeline
    eps = torch.stack([(call.x - call.alpha * call.denoised) / call.sigma for call in calls])
    assert relative(eps, arrays["eps_preds"]) < TOLERANCE
    state = torch.stack([call.x for call in calls])
    m = (state - eps * timeline.sigma[:-1, None, None]) / timeline.alpha[:-1, None, None]
    assert relative(m, arrays["m_preds"]) < TOLERANCE


@pytest.mark.parametrize("name", FRESH)
def test_the_published_initialisation_is_reproduced(name: str) -> None:
    arrays = golden(name)
    for key, value in gs_family(arrays).init(0).items():
        torch.testing.assert_close(value, arrays[f"param_{key}"], rtol=TOLERANCE, atol=1e-12)


@pytest.mark.parametrize("name", SAMPLING)
def test_dense_steps_equal_the_official_ones(name: str) -> None:
    """x' = sum_j A_nj x_j + C_nj m_j, in the path's scale and in EDM coordinates, and the form in y_0 and m alone."""
    arrays = golden(name)
    family, steps = gs_family(arrays), arrays["steps"]
    values, unit = family.prepare(params_of(arrays, "param_")), torch.eye(2 * steps, dtype=torch.float64)
    rows = []
    for n in range(steps):
        newest = slice(max(0, n + 1 - family.memory), n + 1)
        states, outputs = unit[:steps][newest].flip(0), unit[steps:][newest].flip(0)
        rows.append(family._advance(n, tuple(outputs), tuple(states), values))
    A, C = torch.stack(rows).split(steps, dim=1)
    alpha = values.timeline.alpha
    A_edm, C_edm = A * alpha[:-1] / alpha[1:, None], C / alpha[1:, None]
    for ours, key in ((A, "A_vp"), (C, "C_vp"), (A_edm, "A_edm"), (C_edm, "C_edm")):
        assert relative(ours, arrays[key]) < TOLERANCE
    a, b = [unit.new_ones(())], [unit.new_zeros(steps)]
    for n in range(steps):
        a.append(sum((A_edm[n, j] * a[j] for j in range(n + 1)), unit.new_zeros(())))
        b.append(sum((A_edm[n, j] * b[j] for j in range(n + 1)), C_edm[n]))
    assert relative(torch.stack(a[1:]), arrays["canon_a_edm"]) < TOLERANCE
    assert relative(torch.stack(b[1:]), arrays["canon_b_edm"]) < TOLERANCE


@pytest.mark.parametrize("name", [name for name in FRESH if name in THEORY])
def test_the_program_is_the_canonical_form_of_non_stationary_solvers(name: str) -> None:
    """Where the network is told the solver's own times, the table's rows are BNS coefficients."""
    arrays = golden(name)
    program, alpha = gs_family(arrays).program(params_of(arrays, "param_")), arrays["alpha"]
    rows = program.readouts
    assert relative(rows.A[:, 0] * alpha[0] / alpha[1:], arrays["canon_a_edm"]) < TOLERANCE
    assert relative(rows.B / alpha[1:, None], arrays["canon_b_edm"]) < TOLERANCE


@pytest.mark.parametrize("steps", [4, 5, 6, 8, 10])
@pytest.mark.parametrize("t_eps", ["0.001", "0.0001"])
def test_time_parametrisation_equals_the_official_one(steps: int, t_eps: str) -> None:
    arrays, prefix = golden("gs_time_param"), f"n{steps}_eps{t_eps}"
    path = VP(arrays[f"vp_beta_0_eps{t_eps}"], arrays[f"vp_beta_1_eps{t_eps}"])
    family = build("gas", Grid("logsnr", steps, 1.0, float(t_eps)), path, init_from="paper")
    params = family.init(0)
    perturbed = {**params, "mu_logit": arrays[f"{prefix}_mu_logit_rand"]}
    for kind, values in (("init", params), ("rand", perturbed)):
        s = family.prepare(values).timeline.s
        torch.testing.assert_close(s, arrays[f"{prefix}_t_{kind}"], rtol=0.0, atol=1e-15)


@pytest.mark.parametrize("steps", [4, 10])
@pytest.mark.parametrize("t_eps", ["0.001", "0.0001"])
def test_any_grid_is_inverted_exactly(steps: int, t_eps: str) -> None:
    arrays = golden("gs_time_param")
    t = arrays[f"n{steps}_eps{t_eps}_t_rand"]
    family = build("gas", t, "vp")
    torch.testing.assert_close(
        family.init(0)["mu_logit"], arrays[f"n{steps}_eps{t_eps}_mu_logit_rand"], rtol=1e-9, atol=1e-9
    )
    torch.testing.assert_close(family.prepare(family.init(0)).timeline.s, t, rtol=0.0, atol=1e-14)


def training_family() -> GAS:
    times = golden("gs_time_param")
    path = VP(times["vp_beta_0_eps0.001"], times["vp_beta_1_eps0.001"])
    family = build("gas", Grid("time_uniform", 4, 1.0, 1e-3), path, init_from="paper")
    assert isinstance(family, GAS)
    return family


@pytest.mark.parametrize(("key", "distance"), [("l1", l1), ("l2", mse)])
def test_losses_and_gradients_equal_the_official_ones(key: str, distance: Any) -> None:
    arrays, family = golden("gs_grad_train_nfe4"), training_family()
    params = {name: value.clone().requires_grad_() for name, value in params_of(arrays, "grad_point_").items()}
    loss = distance(sample(family.program(params), denoiser_of(arrays), arrays["x_T"]), arrays["teacher_x0"])
    assert relative(loss, arrays[f"loss_{key}"]) < TOLERANCE
    loss.mean().backward()
    for name, value in params.items():
        assert value.grad is not None
        torch.testing.assert_close(value.grad, arrays[f"grad_loss_{key}_{name}"], rtol=1e-9, atol=1e-10)


def test_forty_iterations_of_the_published_recipe_equal_the_official_ones() -> None:
    arrays, family = golden("gs_grad_train_nfe4"), training_family()
    params = nn.ParameterDict(params_of(arrays, "train_init_"))
    for name, value in family.init(0).items():
        torch.testing.assert_close(value, params[name].detach(), rtol=TOLERANCE, atol=1e-12)
    optimizer, average = torch.optim.Adam(params.values(), lr=arrays["lr"]), moving_average(params, arrays["ema_decay"])
    losses, norms, first = [], [], {}
    for iteration in range(arrays["iters"]):
        optimizer.zero_grad()
        end = sample(family.program(dict(params)), denoiser_of(arrays), arrays["x_T"])
        loss = l1(end, arrays["teacher_x0"]).mean()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(list(params.values()), arrays["clip"]))
        optimizer.step()
        average.update_parameters(params)
        losses.append(loss.detach())
        if iteration == 0:
            first = {name: value.detach().clone() for name, value in params.items()}
    assert relative(torch.stack(losses), arrays["train_losses"]) < TOLERANCE
    assert relative(torch.stack(norms), arrays["train_grad_norms_before_clip"]) < 1e-10
    for ours, prefix in ((first, "iter1"), (params, "final"), (average.module, "ema")):
        for name, value in ours.items():
            torch.testing.assert_close(value.detach(), arrays[f"train_{prefix}_{name}"], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("name", "kind"), [("edm", "logsnr"), ("ldm64_quadratic", "quadratic")])
def test_the_teachers_equal_the_official_ones(name: str, kind: str) -> None:
    """UniPC: 20 steps in log-SNR down to t = 1e-4 on pixels, a quadratic grid on latents."""
    arrays, times = golden(f"teacher_unipc_{name}"), golden("gs_time_param")
    path = VP(times["vp_beta_0_eps0.0001"], times["vp_beta_1_eps0.0001"]) if name == "edm" else Discrete()
    rule = Grid(kind, arrays["steps"], 1.0, arrays["t_eps"])
    family = build("unipc", rule, path, order=arrays["order"], variant=arrays["variant"])
    states = sample(family.program(), denoiser_of(arrays), arrays["x_T"], readouts=True)
    assert relative(family.timeline.s, arrays["t_steps"]) < TOLERANCE
    assert relative(states, arrays["x_states"][1:]) < TOLERANCE


def test_adversarial_losses_and_gradients_equal_the_official_ones() -> None:
    arrays = golden("gas_adv_loss")
    W, b, v = (arrays[f"disc_{name}"].clone().requires_grad_() for name in ("W", "b", "v"))

    def discriminator(x: Tensor) -> Tensor:
        return torch.tanh(x @ W.T + b) @ v[:, None]

    loss = discriminator_loss(discriminator, arrays["fake"], arrays["real"], arrays["gamma"])
    for ours, key in zip(loss, ("disc_loss", "disc_adv", "r1", "r2"), strict=True):
        torch.testing.assert_close(ours, arrays[key], rtol=TOLERANCE, atol=1e-13)
    loss.total.mean().backward()
    for name, value in (("W", W), ("b", b), ("v", v)):
        torch.testing.assert_close(value.grad, arrays[f"disc_grad_{name}"], rtol=TOLERANCE, atol=1e-13)
    fake = arrays["fake"].clone().requires_grad_()
    adversarial = generator_loss(discriminator, fake, arrays["real"])
    torch.testing.assert_close(adversarial, arrays["gen_loss"], rtol=TOLERANCE, atol=1e-13)
    adversarial.mean().backward()
    torch.testing.assert_close(fake.grad, arrays["gen_grad_fake"], rtol=TOLERANCE, atol=1e-13)


def test_the_float32_tables_of_the_official_code_move_samples_by_their_rounding() -> None:
    """The official latent runs round times and log alpha to float32; the schedule itself differs by that alone."""
    arrays = golden("gs_ldm32tables_nfe4_random")
    exact = gs_path({"kind": "ldm64"})
    family = GAS(grid=gs_family(arrays).grid, path=exact)
    program = family.program(params_of(arrays, "param_"))
    deviation = relative(sample(program, denoiser_of(arrays), arrays["x_T"]), arrays["x0"])
    assert 1e-7 < deviation < 1e-5
