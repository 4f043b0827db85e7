"""What a configuration is refused for, and what it becomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor

from solverdistill.denoisers.guidance import make_guided
from solverdistill.noise.grids import Grid, grid_values
from solverdistill.noise.paths import EDM, Flow
from solverdistill.objectives.rollout import Trajectory
from solverdistill.teachers.mixture import Mixture, toy_mixture
from solverdistill.teachers.own.load import load_own
from solverdistill.training.configuration import check_config, make_student, make_target_settings
from solverdistill.training.descent import make_objective

CONFIGS = Path(__file__).parents[2] / "configs"


def composed(*overrides: str) -> Any:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", overrides=["model=mixture", "run_name=test", "output_dir=.", *overrides])
    return OmegaConf.to_container(config)


class EpsNetwork(Mixture):
    """The toy mixture, as a network that predicts noise on a flow path that reaches pure noise."""

    def __init__(self) -> None:
        toy = toy_mixture()
        super().__init__(toy.means, toy.weights, toy.stds)
        self.path, self.noise_range, self.prediction = Flow(), (1.0, 0.01), "eps"


class Latents(EpsNetwork):
    def decode(self, samples: Tensor) -> Tensor:
        return 2 * samples


@pytest.mark.parametrize("solver", ["dss", "epd", "ld3"])
def test_a_network_that_predicts_noise_is_not_asked_at_pure_noise(solver: str) -> None:
    chosen = f"solver={solver}", "solver.nfe=5"
    afs = ["solver.afs=false", "solver.nfe=6"] if solver == "epd" else []
    with pytest.raises(ValueError, match="mixture predicts noise and says nothing at pure noise, where .* begins"):
        make_student(composed(*chosen, *afs)["solver"], EpsNetwork())
    below = make_student(composed(*chosen, *afs, "+solver.grid.start=0.99")["solver"], EpsNetwork())
    assert below.family.grid[0] == 0.99
    with pytest.raises(ValueError, match="says nothing at pure noise"):
        levels = "~solver.grid", "+solver.grid=[1.0,0.75,0.5,0.25,0.1,0.01]"
        make_student(composed("solver=dss", "solver.nfe=5", *levels)["solver"], EpsNetwork())
    flow = EpsNetwork()
    flow.prediction = "flow"
    assert make_student(composed(*chosen, *afs)["solver"], flow).family.grid[0] == 1.0


def test_an_objective_looks_at_what_a_latent_teacher_decodes() -> None:
    objective = composed("objective=endpoint")["objective"]
    latents = Latents()
    made = make_objective(objective, latents)
    assert isinstance(made, Trajectory) and made.decode is not None
    assert torch.equal(made.decode(torch.ones(2)), torch.full((2,), 2.0))
    assert make_objective(objective, EpsNetwork()).decode is None
    assert make_objective(composed("objective=rmse_bound")["objective"], latents).lipschitz == 1.0


def test_guidance_is_a_number_or_a_mapping() -> None:
    check_config(composed("guidance={scale: [2.0, 6.0], interval: [0.8, 0.2]}"))
    for wrong in ("guidance=strong", "guidance=true"):
        with pytest.raises(TypeError, match="guidance must be a number or a mapping of scale, interval and channels"):
            check_config(composed(wrong))


def test_a_data_range_is_two_ascending_numbers() -> None:
    network = {"target": "torch.nn.Identity", "shape": [6], "call": "x"}
    settings: dict[str, Any] = {**network, "prediction": "v", "noise_schedule": "vp"}
    assert load_own(**settings).data_range == toy_mixture().data_range == (-1.0, 1.0)
    teacher = load_own(**settings, data_range=[0, 255])
    assert teacher.data_range == (0.0, 255.0)
    assert teacher.fingerprint() == load_own(**settings).fingerprint()
    drawn, _ = make_guided(teacher, {"scale": [1.0, 2.0]})
    assert drawn.data_range == (0.0, 255.0)
    for wrong in ([1.0, -1.0], [0.0], [0.0, 0.5, 1.0]):
        with pytest.raises(ValueError, match="model.data_range must be two ascending numbers"):
            load_own(**settings, data_range=wrong)


def test_the_grid_of_a_reference_has_the_exponent_of_its_own_kind() -> None:
    """Noise levels decide the cache, so the default's are those that it always had."""
    edm, flow = (EDM(), (80.0, 0.002)), (Flow(), (0.99, 0.001))

    def levels(path: tuple[Any, Any], *overrides: str) -> tuple[float, ...]:
        return make_target_settings(composed(*overrides)["targets"]).reference.levels(*path)

    uniform = "targets.reference.grid=time_uniform"
    for path, ends in (edm, flow):
        assert levels((path, ends)) == grid_values(Grid("polynomial", 40, *ends, rho=7.0), path)
        assert levels((path, ends), uniform) == grid_values(Grid("time_uniform", 40, *ends, rho=1.0), path)
        assert levels((path, ends), uniform, "targets.reference.rho=3.0") == grid_values(
            Grid("time_uniform", 40, *ends, rho=3.0), path
        )
    steps = torch.tensor(levels(flow, uniform), dtype=torch.float64).diff()
    torch.testing.assert_close(steps, torch.full_like(steps, (0.001 - 0.99) / 40), rtol=0, atol=1e-12)
