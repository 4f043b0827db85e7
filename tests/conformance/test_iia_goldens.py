"""IIA and its closed-form fit against the goldens of the paper's equations (goldens/dss_bespoke_dode/README.md)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bespoke_dode_goldens import golden, golden_denoiser
from torch import Tensor

from solverdistill.families import build
from solverdistill.families.base import Family, Params
from solverdistill.fits.least_squares.row_fits import RowFit, RowSettings, fit_rows
from solverdistill.noise.paths import Discrete
from solverdistill.programs.playing import sample
from solverdistill.references.batch import Batch

CASES = [(nodes, fine) for nodes in (6, 7, 10) for fine in (3, 10)]


def states(family: Family, params: Params) -> Tensor:
    return sample(family.program(params), golden_denoiser(), golden("iia")["latents_test"], readouts=True)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=tolerance * float(expected.abs().max()))


def refit(family: Family, **settings: Any) -> tuple[Params, list[RowFit]]:
    noise = golden("iia")["latents_fit"]
    batch = Batch(noise, noise[None][:0], noise)
    return fit_rows(family, golden_denoiser(), batch, RowSettings(form="local", ridge=0.0, **settings))


@pytest.mark.parametrize(("nodes", "fine"), CASES)
def test_iia_edm_plays_and_finds_the_golden_coefficients(nodes: int, fine: int) -> None:
    """The smallest of some rows' directions is 1e-12 of the largest: coefficients lose digits there, states do not."""
    arrays, prefix = golden("iia"), f"N{nodes}_M{fine}"
    family = build("iia_edm", arrays[f"N{nodes}_sigmas"], r=1)
    expected = {name: arrays[f"{prefix}_iia_{name}"][:-1] for name in ("beta_eps", "beta_D")}
    assert_close(states(family, expected), arrays[f"{prefix}_iia_states"], 1e-12)
    params, fits = refit(family, fine_steps=fine)
    assert_close(states(family, params), arrays[f"{prefix}_iia_states"], 1e-11)
    for name, value in expected.items():
        torch.testing.assert_close(params[name], value, rtol=5e-4, atol=1e-9)
        assert float(params[name][0, 1]) == 0
    # Rows are in the scale of unit variance, and of one pixel.
    squares = torch.tensor([[fit.before, fit.after] for fit in fits], dtype=torch.float64)
    squares = squares * 6 * (1 + family.timeline.clock[1:-1, None] ** 2)
    torch.testing.assert_close(squares, arrays[f"{prefix}_iia_residual_before_after"][:-1], rtol=5e-4, atol=0.0)


@pytest.mark.parametrize(("nodes", "fine"), CASES)
def test_biia_edm_plays_and_finds_the_golden_coefficients(nodes: int, fine: int) -> None:
    arrays, prefix = golden("iia"), f"N{nodes}_M{fine}"
    family = build("biia_edm", arrays[f"N{nodes}_sigmas"], r=1)
    params, _ = refit(family, fine_steps=fine)
    torch.testing.assert_close(params["gamma"], arrays[f"{prefix}_biia_gamma"][:-1], rtol=1e-9, atol=1e-10)
    assert_close(states(family, params)[-1], arrays[f"{prefix}_biia_x"], 1e-11)


def test_iia_ddim_plays_and_finds_the_golden_coefficients() -> None:
    """In the second step both directions are the same up to a factor, and so only the later coefficients are unique."""
    arrays = golden("iia")
    path = Discrete(beta_schedule="linear", beta_start=1e-4, beta_end=0.02)
    family = build("iia_ddim", (arrays["ddim_N10_t"] + 1) / 1000, path)
    assert_close(states(family, {"phi": arrays["ddim_N10_phi"]}), arrays["ddim_N10_states"], 1e-11)
    params, _ = refit(family, fine_steps=int(arrays["ddim_N10_M"]), fine_solver="euler")
    torch.testing.assert_close(params["phi"][2:], arrays["ddim_N10_phi"][2:], rtol=1e-6, atol=1e-8)
    assert bool((params["phi"][0] == 0).all())
    assert_close(states(family, params), arrays["ddim_N10_states"], 1e-11)


@pytest.mark.parametrize(
    ("name", "base"),
    [("iia_edm", "heun"), ("biia_edm", "heun"), ("iia_ddim", "ddim"), ("iia_ipndm", "ipndm"), ("iia_dpmpp", "dpmpp")],
)
@pytest.mark.parametrize("path", ["edm", "flow", "vp"])
def test_it_starts_as_its_base(name: str, base: str, path: str) -> None:
    grid = torch.tensor([0.95, 0.7, 0.4, 0.2, 0.05], dtype=torch.float64)
    ours, theirs = build(name, grid, path), build(base, grid, path).program()
    program = ours.program(ours.init(0))
    torch.testing.assert_close(program.A, theirs.A, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(program.B, theirs.B, rtol=1e-12, atol=1e-12)


def test_r_must_not_be_negative() -> None:
    with pytest.raises(ValueError, match="r of biia_edm must be at least 0, not -1"):
        build("biia_edm", [2.0, 1.0, 0.5], r=-1)
