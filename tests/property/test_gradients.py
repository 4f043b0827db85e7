"""Every param that acts has a finite, non-zero gradient equal to finite differences; the others are named.

Of a family that is new in the roster nobody has named them yet: what has no effect may have no gradient.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from solverdistill.families import CLASSICAL, ROSTER, build
from solverdistill.families.base import Family, Params
from solverdistill.families.learned.corrections import TableFamily
from solverdistill.families.learned.dyweight import DyWeight
from solverdistill.programs.playing import sample
from solverdistill.teachers.mixture import toy_mixture
from tests.helpers import SHIPPED
from tests.property.test_roster import GRIDS, random_params

TRAINABLE = sorted(set(ROSTER) - {family.name for family in CLASSICAL})
STEP = 1e-6


def lower_triangle(n: int, diagonal: int) -> Tensor:
    return torch.ones(n, n, dtype=torch.bool).tril(diagonal)


def idle(family: Family, params: Params) -> dict[str, Tensor]:
    """Entries that never act, by structure: True where the gradient must be zero."""
    none = {name: torch.zeros_like(value, dtype=torch.bool) for name, value in params.items()}
    n, name = family.steps, family.name
    if name == "gas":  # at step i only i + 1 past outputs and states exist
        for key in none:
            if key.endswith("_diff"):
                none[key] = torch.arange(n) < int(key[1:-5]) - 1
    elif name == "dss":  # strictly lower part; two rows of the tail keep their nearest entry
        none["raw_coeffs"] = ~lower_triangle(n, -1)
        if n <= 6:
            for row in (n - 2, n - 1):
                none["raw_coeffs"][row] = torch.arange(n) != row - 1
    elif isinstance(family, DyWeight):  # nothing above pure noise can be told
        none["hybrid_weights"], none["t_scale"] = ~family.acting, family.program(params).alpha == 0
    elif name == "bns":
        none["b"] = ~lower_triangle(params["b"].shape[0], 0)
    elif name in ("s4s", "s4s_alt"):
        order = params["phi"].shape[1]
        none["phi"] = torch.arange(order)[None] > torch.arange(n)[:, None]
    elif name == "ld3":  # one proportion cancels in the normalisation; the ends have no offset, the last no evaluation
        none["params1"][0] = True
        none["params2"][0] = none["params2"][-1] = True
    elif isinstance(family, TableFamily):  # pure noise has no other told level, and tells an exact denoiser nothing
        none["correction_inputs"], none["correction_denoised"] = (~family.corrections.mask).split(
            [1, family.nfe], dim=1
        )
        none["told"] = family.program(params).alpha == 0
        none["correction_inputs"][:-1, 0] |= none["told"]
    elif name in ("iia_edm", "biia_edm"):  # the first step has no step before it
        for key in none:
            none[key][0, 1:] = True
    elif name in ("iia_ddim", "iia_ipndm"):  # nor has its output changed since then
        none["phi"][0] = True
    elif name.startswith("dode"):
        # The first evaluation has no previous output, but for the noise itself in noise prediction.
        none["lambdas"].view(-1)[0] = family.path.name in ("edm", "flow")
    return none


def end_square(family: Family, params: Params, noise: Tensor) -> Tensor:
    end = sample(family.program(params), toy_mixture(), noise)
    return (end * torch.linspace(0.5, 1.5, 6, dtype=torch.float64)).square().mean()


def finite_differences(family: Family, params: Params, name: str, noise: Tensor) -> Tensor:
    result = torch.zeros_like(params[name])
    for i in range(result.numel()):
        values = []
        for sign in (1.0, -1.0):
            moved = params[name].clone()
            moved.view(-1)[i] += sign * STEP
            values.append(end_square(family, {**params, name: moved}, noise))
        result.view(-1)[i] = (values[0] - values[1]) / (2 * STEP)
    return result


@pytest.mark.parametrize("path", GRIDS)
@pytest.mark.parametrize("name", TRAINABLE)
def test_gradients_equal_finite_differences(name: str, path: str) -> None:
    family = build(name, GRIDS[path].with_steps(4), path)
    params = random_params(family)
    if name == "ld3":  # deep inside the window, whose width the paper treats as a constant
        params["params2"] *= 1e-3
    noise = torch.randn(4, 6, dtype=torch.float64)
    leaves = {key: value.clone().requires_grad_() for key, value in params.items()}
    end_square(family, leaves, noise).backward()
    for key, inactive in idle(family, params).items():
        gradient = leaves[key].grad
        assert gradient is not None and bool(torch.isfinite(gradient).all()), key
        expected = finite_differences(family, params, key, noise)
        scale = float(expected.abs().max())
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=2e-6 * max(scale, 1.0))
        tiny = 1e-13 * max(scale, 1.0)  # what cancels in the normalisation of learned times leaves a rounding error
        assert bool((gradient[inactive].abs() <= tiny).all()), key
        if name not in SHIPPED:
            inactive = expected.abs() <= 1e-9 * scale
            assert not bool(inactive.all()), f"nothing in {key} acts"
        assert bool((gradient[~inactive].abs() > tiny).all()), key
