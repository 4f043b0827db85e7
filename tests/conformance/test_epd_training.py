"""The published EPD schedule against traces of the official loss: every step's loss, gradients and Adam results."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from solverdistill import families
from solverdistill.fits.gradient.module import FitSettings
from solverdistill.fits.gradient.published_epd import PublishedEPDDistillation
from solverdistill.noise.grids import Grid, nested_grid
from solverdistill.noise.paths import make_path
from solverdistill.objectives.published_epd import PublishedEPD
from solverdistill.references.batch import Batch
from solverdistill.references.solving import solve_reference
from tests.helpers import epd_golden, epd_index, epd_names, golden_mixture, raw_params


def batch_of(golden: dict[str, Tensor], iteration: int) -> Batch:
    targets = golden[f"it{iteration}_teacher"]
    return Batch(golden["z_iters"][iteration], targets, targets[-1])


@pytest.mark.parametrize("name", epd_names("epd_train"))
def test_losses_gradients_and_updates(name: str) -> None:
    golden, entry = epd_golden(name), epd_index()[name]
    family = families.build(
        "epd",
        golden["sigmas"],
        points=entry["K"],
        scale_dir=entry["sd"],
        scale_time=entry["st"],
        afs=entry["afs"],
    )
    params = {key: torch.nn.Parameter(value.clone()) for key, value in raw_params(golden).items()}
    optimizer = torch.optim.Adam(params.values(), lr=entry["lr"])
    objective, teacher = PublishedEPD(alpha=entry["alpha"]), golden_mixture(golden)
    for i in range(entry["iterations"]):
        steps = list[int]()
        for step in objective.steps(family, lambda: dict(params), teacher, batch_of(golden, i)):
            steps.append(step.step)
            key = f"it{i}_step{step.step}"
            torch.testing.assert_close(step.loss, golden[f"{key}_loss_sum_over_batch"], rtol=1e-8, atol=0)
            student = step.state
            if step.step == family.steps - 1:  # the trace keeps the clipped feature of the last step
                student = (127.5 * student + 128).clamp(0, 255)
            torch.testing.assert_close(student, golden[f"{key}_student"], rtol=0, atol=1e-10)
            assert step.back_propagated == (f"{key}_grad_r_params" in golden)
            if step.back_propagated:
                optimizer.zero_grad()
                step.loss.backward(retain_graph=True)
                for param, value in params.items():
                    torch.testing.assert_close(value.grad, golden[f"{key}_grad_{param}"], rtol=1e-8, atol=1e-8)
                optimizer.step()
        assert steps == list(range(family.steps))
        for param, value in params.items():
            torch.testing.assert_close(value.detach(), golden[f"it{i}_after_{param}"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", epd_names("epd_train"))
def test_the_lightning_module_runs_the_same_schedule(name: str) -> None:
    """`PublishedEPDDistillation.training_step`, with Lightning's calls replaced, ends at the golden's params."""
    golden, entry = epd_golden(name), epd_index()[name]
    options = {"points": entry["K"], "scale_dir": entry["sd"], "scale_time": entry["st"], "afs": entry["afs"]}
    family = families.build("epd", golden["sigmas"], **options)
    objective = PublishedEPD(alpha=entry["alpha"])

    def adam(params: object) -> torch.optim.Optimizer:
        return torch.optim.Adam(params, lr=entry["lr"])  # type: ignore[arg-type]

    fit = FitSettings(checkpointing=True)
    module = PublishedEPDDistillation(family, golden_mixture(golden), objective, adam, fit)
    with torch.no_grad():
        for key, value in raw_params(golden).items():
            module.params[key].copy_(value)
    optimizer = module.configure_optimizers()
    module.optimizers = lambda: optimizer  # type: ignore[method-assign]
    module.lr_schedulers = lambda: None  # type: ignore[method-assign]
    module.manual_backward = lambda loss, **options: loss.backward(**options)  # type: ignore[method-assign]
    module.log = lambda *args, **options: None  # type: ignore[method-assign]
    for i in range(entry["iterations"]):
        module.training_step(batch_of(golden, i), i)
    for key, value in module.current_params().items():
        torch.testing.assert_close(value, golden[f"it{entry['iterations'] - 1}_after_{key}"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", epd_names("epd_teacher"))
def test_nested_teacher_grid_and_targets(name: str) -> None:
    golden, entry = epd_golden(name), epd_index()[name]
    rule = Grid(entry["schedule_type"], entry["N"] - 1, rho=entry["rho"])
    grid = nested_grid(rule, make_path("edm"), entry["M"], entry["inner_steps"])
    solver = {"dpm": "dpm2"}.get(entry["teacher"], entry["teacher"])
    trajectory = solve_reference(families.build(solver, grid), golden_mixture(golden), golden["z"])
    states = trajectory.states[:: entry["inner_steps"] - 1]
    torch.testing.assert_close(states, golden["states"], rtol=0, atol=1e-10)
    torch.testing.assert_close(states[entry["slice"]], golden["targets"], rtol=0, atol=1e-10)
