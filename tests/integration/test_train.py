"""The command that users type: every config composes and trains; what it writes plays; mistakes are one sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from solverdistill import families, load_solver, read_solver, sample
from solverdistill.fits.greedy import fit_dode
from solverdistill.objectives.distances import rmse
from solverdistill.objectives.rollout import Trajectory
from solverdistill.references.seeding import SPLITS, seeded_noise
from solverdistill.references.solving import Reference
from solverdistill.teachers.mixture import toy_mixture
from solverdistill.training.descent import make_optimizer
from solverdistill.training.run import train
from tests.commands import run_alone, run_here

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
TINY = [
    "logger=csv",
    "evaluation=off",
    "targets.train_samples=4",
    "targets.validation_samples=2",
    "targets.test_samples=2",
    "trainer=cpu",
    "trainer.enable_progress_bar=false",
]


def two_steps(fit: str) -> list[str]:
    """Overrides for two small steps of gradient descent, in one of its forms."""
    return [f"fit={fit}", *(f"fit.{fit}.{setting}" for setting in ("iterations=2", "batch_size=2", "validations=1"))]


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def composed(output: Path, *overrides: str, fit: Sequence[str] | None = None, tiny: Sequence[str] = TINY) -> DictConfig:
    fit = two_steps("gradient") if fit is None else fit
    chosen = [] if any(one.startswith(("solver=", "experiment=")) for one in overrides) else ["solver=epd"]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", overrides=[*tiny, *fit, *chosen, *overrides], return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        config.output_dir = str(output)
        config.run_name = "test"
        del config["hydra"]
    output.mkdir(parents=True, exist_ok=True)
    return config


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("SOLVERDISTILL_HOME", str(tmp_path / "home"))
    yield


@pytest.mark.parametrize("solver", [name for name in names("solver") if name not in ("own", "auto")])
def test_every_solver_trains_on_the_mixture_and_exports_what_it_trained(solver: str, tmp_path: Path) -> None:
    result = train(composed(tmp_path / "run", f"solver={solver}", "model=mixture"))
    read = read_solver(tmp_path / "run" / "solver.json")
    assert result["nfe"] == read.program.nfe and read.provenance["teacher"]["name"] == "mixture"
    states = sample(read.program, lambda x, alpha, sigma: x, torch.randn(2, 6), readouts=True)
    assert bool(torch.isfinite(states).all())
    assert load_solver(tmp_path / "run" / "solver-last.json").nfe == read.program.nfe


def test_a_family_of_the_working_folder_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ("from solverdistill.families.learned.bns import BNS", "class Mine(BNS):", '    name = "mine"')
    (tmp_path / "my_family.py").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    chosen = "solver=own", "model=mixture", "solver.nfe=4", "solver.name=my_family.Mine", "+solver.init_from=grid"
    result = train(composed(tmp_path / "run", *chosen))
    read = read_solver(tmp_path / "run" / "solver.json")
    assert result["nfe"] == read.program.nfe == 4
    assert (read.family["name"], read.family["init_from"]) == ("my_family.Mine", "grid")
    with pytest.raises(ValueError, match="^solver.name must be given: the dotted name of a family of your own"):
        train(composed(tmp_path / "other", "solver=own", "model=mixture"))


@pytest.mark.parametrize("experiment", names("experiment"))
def test_every_experiment_runs_two_steps(experiment: str, tmp_path: Path) -> None:
    text = (CONFIGS / "experiment" / f"{experiment}.yaml").read_text()
    model = "digits_kde" if "override /fit: adversarial" in text else "mixture"  # a discriminator looks at images
    fit = re.findall(r"override /fit: (\w+)", text)[0]
    tiny = ["fit.greedy.samples=2"] if fit == "greedy" else two_steps(fit)[1:]
    train(composed(tmp_path / "run", f"experiment={experiment}", f"model={model}", fit=tiny))
    assert {"solver.json", "solver-last.json"} <= {path.name for path in (tmp_path / "run").iterdir()}
    assert len((tmp_path / "run" / "fits.csv").read_text().split("\n")) > 2


def test_the_greedy_fit_is_the_closed_form_on_the_training_samples(tmp_path: Path) -> None:
    overrides = ["solver=dode_ipndm", "model=mixture", "targets=default", "targets.train_samples=70"]
    overrides.append("targets.validation_samples=64")
    result = train(composed(tmp_path / "run", *overrides, fit=["fit=greedy", "fit.greedy.samples=64"]))
    read = read_solver(tmp_path / "run" / "solver.json")
    family, teacher = families.build(**{k: v for k, v in read.family.items() if k != "params"}), toy_mixture()
    noise, _ = seeded_noise(range(64), teacher)
    expected = fit_dode(family, teacher, noise, Reference().solve(teacher, teacher, noise))["lambdas"]
    torch.testing.assert_close(read.params["lambdas"], expected, rtol=1e-3, atol=1e-4)
    held_out, _ = seeded_noise(range(SPLITS["validation"], SPLITS["validation"] + 64), teacher)
    end = Reference().solve(teacher, teacher, held_out).end()
    classical, fitted = (sample(family.program({"lambdas": v}), teacher, held_out) for v in (0 * expected, expected))
    assert result["rmse"] == pytest.approx(float(rmse(fitted, end).mean()), rel=1e-3)
    assert result["rmse"] < 0.8 * float(rmse(classical, end).mean())


@pytest.mark.parametrize(
    ("override", "sentence"),
    [("solver=dss", "dss has none, take fit=gradient"), (f"ckpt_path={CONFIGS}/train.yaml", "has no checkpoints")],
)
def test_the_greedy_fit_says_what_it_cannot_do(override: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        train(composed(tmp_path / "run", "solver=dode_ddim", "model=mixture", override, fit=["fit=greedy"]))


@pytest.mark.parametrize("objective", names("objective"))
def test_every_objective_composes(objective: str, tmp_path: Path) -> None:
    config = composed(tmp_path / "run", f"objective={objective}")
    assert config.objective._target_.startswith("solverdistill.")


def test_export_equals_the_params_and_the_seed_decides(tmp_path: Path) -> None:
    runs = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(composed(tmp_path / name, "model=mixture", f"seed={seed}"))
        runs.append(json.loads((tmp_path / name / "solver-last.json").read_text())["family"]["params"])
    assert runs[0] == runs[1] and runs[0] != runs[2]


class Killed(RuntimeError):
    """Stands for a signal."""


@pytest.mark.parametrize(
    ("killed_at", "fit", "options"),
    [
        (3, "gradient", ["model=mixture"]),
        (5, "gradient", ["model=mixture", "fit.gradient.ema=0.9", "solver=gas"]),
        (5, "relaxed", ["model=mixture", "objective=endpoint"]),
        (3, "adversarial", ["model=digits_kde", "objective=endpoint", "fit.adversarial.discriminator_lr=0.001"]),
        (3, "[race,gradient]", ["model=mixture", "solver=corrected", "solver.nfe=4"]),
    ],
    ids=["gradient", "averaged", "relaxed", "adversarial", "after-a-race"],
)
def test_a_killed_run_resumed_equals_an_uninterrupted_one(
    killed_at: int, fit: str, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = fit.strip("[]").split(",")[-1]
    sizes = [f"fit.{name}.{setting}" for setting in ("iterations=6", "batch_size=2", "validations=3")]
    overrides = [f"fit={fit}", *sizes, *options, "targets.train_samples=7"]
    train(composed(tmp_path / "whole", *overrides, fit=[]))
    evaluate = Trajectory.outcome
    steps = list[int]()

    def dies(self: Trajectory, *arguments: Any) -> Any:
        steps.append(1)
        if len(steps) > killed_at:
            raise Killed
        return evaluate(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Trajectory, "outcome", dies)
        train(composed(tmp_path / "killed" / "first", *overrides, fit=[]))
    train(composed(tmp_path / "killed" / "second", *overrides, "ckpt_path=last", fit=[]))
    for file in ("solver-last.json", "solver.json"):
        whole = read_solver(tmp_path / "whole" / file).params
        resumed = read_solver(tmp_path / "killed" / "second" / file).params
        assert all(torch.equal(value, resumed[name]) for name, value in whole.items()), file


COUNTS = ["targets.train_samples=64", "targets.validation_samples=32", "model=mixture", "solver.nfe=4"]
STEPPED = ["fit.gauss_newton.iterations=3", "fit.gauss_newton.samples=16"]


@pytest.mark.parametrize("jacobian", ["sketch", "exact"])
@pytest.mark.parametrize("solver", ["corrected", "gas"])
def test_gauss_newton_lowers_the_error(solver: str, jacobian: str, tmp_path: Path) -> None:
    fit = ["fit=gauss_newton", *STEPPED, f"fit.gauss_newton.jacobian={jacobian}"]
    result = train(composed(tmp_path / "run", f"solver={solver}", *COUNTS, fit=fit))
    lines = (tmp_path / "run" / "fits.csv").read_text().split("\n")[1:-1]
    errors = [float(line.split(",")[1]) for line in lines if line.startswith("gauss_newton,")]
    assert errors[-1] < 0.9 * errors[0] and errors == sorted(errors, reverse=True)
    logged = (tmp_path / "run" / "training" / "metrics.csv").read_text()
    assert "gauss_newton/rmse" in logged and len(logged.split("\n")) == len(errors) + 2
    assert result["rmse"] == errors[-1] and load_solver(tmp_path / "run" / "solver.json").nfe == 4


def test_fits_begin_where_the_one_before_ended(tmp_path: Path) -> None:
    names = "race,least_squares,gauss_newton,gradient"
    fit = [f"fit=[{names}]", *STEPPED, *two_steps("gradient")[1:]]
    result = train(composed(tmp_path / "run", "solver=corrected", *COUNTS, fit=fit))
    ends: dict[str, list[float]] = {}
    for line in (tmp_path / "run" / "fits.csv").read_text().split("\n")[1:-1]:
        ends.setdefault(line.split(",")[0], []).append(float(line.split(",")[1]))
    assert list(ends) == names.split(",")
    for before, after in zip(list(ends.values()), list(ends.values())[1:], strict=False):
        assert after[0] == pytest.approx(before[-1], rel=1e-5) and after[-1] <= after[0]
    assert result["rmse"] == pytest.approx(ends["gradient"][-1], rel=1e-5) and result["rmse"] < 0.8 * ends["race"][0]


def test_a_race_that_begins_lower_leaves_a_nested_reference_where_it_was(tmp_path: Path) -> None:
    """Its end points are the teacher's, so what comes after the race goes on from the error that the race found."""
    sizes = ["targets.train_samples=64", "targets.validation_samples=32", "targets.test_samples=8"]
    tiny = [*TINY[:2], *sizes, *TINY[5:]]
    fit = [
        "fit=[race,gauss_newton]",
        "fit.race.first=16",
        "fit.gauss_newton.iterations=3",
        "fit.gauss_newton.samples=32",
    ]
    own = ["model=mixture", "solver=corrected", "solver.nfe=4", "targets.reference.nested=9"]
    errors = {}
    for name, reference in (("nested", own), ("fine", own[:-1])):
        result = train(composed(tmp_path / name, *reference, fit=fit, tiny=tiny))
        solver = read_solver(tmp_path / name / "solver.json")
        assert solver.family["grid"][0] < 40
        noise, _ = seeded_noise(range(64), toy_mixture(), seed=7)
        exact = Reference(steps=60).solve(toy_mixture(), toy_mixture(), noise).end()
        errors[name] = float(rmse(sample(solver.program, toy_mixture(), noise), exact).mean())
        assert result["rmse"] == pytest.approx(errors[name], rel=0.5)
    assert errors["nested"] < 1.3 * errors["fine"]


def test_students_with_levels_or_a_path_of_their_own_race(tmp_path: Path) -> None:
    fit = ["fit=[race,gauss_newton]", "fit.gauss_newton.iterations=1"]
    for name, own in (
        ("listed", ["~solver.grid", "+solver.grid=[70.0,9.0,1.5,0.3,0.01]"]),
        ("path", ["solver.path=vp"]),
    ):
        model = ["model=mixture", "solver=corrected", "solver.nfe=4"]
        result = train(composed(tmp_path / name, *model, *own, fit=fit))
        family = families.build(**read_solver(tmp_path / name / "solver.json").family)
        ratio = family.path.sigma(family.grid[-1]) / family.path.alpha(family.grid[-1])
        assert result["nfe"] == 4 and float(ratio) == pytest.approx(0.01 if name == "listed" else 0.002, rel=1e-6)


def test_points_are_searched_and_left_out_where_there_are_none(tmp_path: Path) -> None:
    fit = ["fit=[race,point_search]", "fit.point_search.samples=8"]
    for solver, stages in (("epd", ["race", "point_search"]), ("gas", ["race"])):
        result = train(composed(tmp_path / solver, f"solver={solver}", *COUNTS, "solver.nfe=5", fit=fit))
        lines = [line.split(",") for line in (tmp_path / solver / "fits.csv").read_text().split("\n")[1:-1]]
        assert list(dict.fromkeys(line[0] for line in lines)) == stages
        assert result["rmse"] == float(lines[-1][1]) < 0.8 * float(lines[0][1])


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["fit=[gauss_newton,race]"], "the race finds where to start, so it has to come first"),
        (["fit=[gradient,relaxed]"], "has 2 fits with an optimizer; keep one of them"),
        (["fit=least_squares", "solver=epd"], "fit=least_squares has nothing to fit in epd; take fit="),
        (["fit=point_search", "solver=gas"], "finds the points of epd and epd_ipndm; gas has none, take fit="),
        (["fit=[]"], "fit is empty; name at least one"),
    ],
)
def test_fits_that_do_not_go_together_are_refused(overrides: list[str], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        train(composed(tmp_path / "run", "model=mixture", *overrides, fit=[]))


def test_the_initial_state_is_a_candidate(tmp_path: Path) -> None:
    """A learning rate that spoils the student leaves the start as the best state."""
    overrides = ["model=mixture", "solver=dode_ddim", "optimizer.lr=1000", "optimizer.cosine=false"]
    train(composed(tmp_path / "run", *overrides, "fit.gradient.rollback=null"))
    files = (tmp_path / "run" / name for name in ("solver.json", "solver-last.json"))
    best, last = (read_solver(file).params["lambdas"] for file in files)
    assert bool((best == 0).all()) and bool((last != 0).any())


def test_a_diverging_fit_goes_back_to_its_best_state(tmp_path: Path) -> None:
    """At this learning rate every step spoils the student; after each validation it is back at the start."""
    sizes = ["iterations=6", "batch_size=2", "validations=3", "rollback=1.5"]
    fit = ["fit=gradient", *(f"fit.gradient.{size}" for size in sizes)]
    overrides = ["model=mixture", "solver=dode_ddim", "optimizer.lr=1000", "optimizer.cosine=false"]
    train(composed(tmp_path / "run", *overrides, fit=fit))
    last = read_solver(tmp_path / "run" / "solver-last.json").params["lambdas"]
    assert bool((last == 0).all())
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["progress"]["rollbacks"] == 3
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == 125


def test_a_plateau_ends_the_fit(tmp_path: Path) -> None:
    sizes = ["iterations=20", "batch_size=2", "validations=20", "patience=2", "rollback=null"]
    fit = ["fit=gradient", *(f"fit.gradient.{size}" for size in sizes)]
    overrides = ["model=mixture", "solver=dode_ddim", "optimizer.lr=1000", "optimizer.cosine=false"]
    train(composed(tmp_path / "run", *overrides, fit=fit))
    lines = [line for line in (tmp_path / "run" / "fits.csv").read_text().split("\n") if line.startswith("gradient")]
    assert len(lines) == 3  # the start and two validations without a better state
    evaluations = [int(line.split(",")[2]) for line in lines]
    step, look = 2 * 2 * 6, 2 * 6  # forward and backward of two samples, and two held-out ones, of nfe 6
    assert evaluations == [look, 2 * look + step, 3 * look + 2 * step]


def test_params_can_have_learning_rates_of_their_own() -> None:
    make = make_optimizer(
        {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.5, "lr_of": {"c*_diff": 0.25, "mu_logit": 2.0}}
    )
    named = {name: torch.nn.Parameter(torch.zeros(2)) for name in ("mu_logit", "c1_diff", "a1_diff")}
    optimizer = make(named.items())
    sum(value.sum() for value in named.values()).backward()
    optimizer.step()
    assert {name: float(value.detach()[0]) for name, value in named.items()} == {
        "mu_logit": -2.0,
        "c1_diff": -0.25,
        "a1_diff": -0.5,
    }


def test_checkpoint_leaves_the_teacher_out(tmp_path: Path) -> None:
    train(composed(tmp_path / "run", "model=edm_digits", "targets.reference.steps=6"))
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
    assert all(key.startswith("params.") for key in checkpoint["state_dict"])
    assert path.stat().st_size < 100_000


def test_the_comparison_writes_its_files(tmp_path: Path) -> None:
    overrides = ["evaluation=default", "evaluation.curve_nfe=[3,4]", "evaluation.grid_samples=2"]
    train(composed(tmp_path / "run", "model=digits_kde", *overrides))
    found = {str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert {"metrics.csv", "metrics.md", "figures/samples.png", "figures/error_against_nfe.png"} <= found
    lines = (tmp_path / "run" / "metrics.csv").read_text().split("\n")
    assert any(line.startswith("epd,student,5,3,") for line in lines)


def command(tmp_path: Path, *overrides: str) -> list[str]:
    """A small run of train.py; an override given twice counts as given here."""
    given = {override.split("=")[0] for override in overrides}
    output = [f"hydra.run.dir={tmp_path}/out/run", *TINY, *two_steps("gradient")]
    return ["train.py", "model=mixture", "solver=epd", *[o for o in output if o.split("=")[0] not in given], *overrides]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("solver.nfee=5", "override 'solver.nfee' names a key that the configuration does not have"),
        ("+solver.pionts=3", "family 'epd' has no hyperparameter 'pionts'; it has: "),
        ("fit.gradient.batch_size=abc", "batch_size of GradientFit must be an integer, not 'abc'"),
        ("solver.nfe=7", "epd cannot spend exactly nfe=7 evaluations; the nearest it can reach: 5 and 8"),
        ("ckpt_path=missing.ckpt", "checkpoint missing.ckpt (ckpt_path) does not exist"),
        (f"hydra.run.dir={ROOT}/train.py/inside", "train.py/inside"),
    ],
)
def test_mistakes_are_one_sentence(override: str, sentence: str, tmp_path: Path) -> None:
    run = run_alone if override.startswith("solver.nfe=") else run_here
    result = run(tmp_path, *command(tmp_path, override))
    assert result.returncode == 2, result.stderr
    errors = [line for line in result.stderr.split("\n") if line.strip()]
    assert len(errors) == 1 and errors[0].startswith("error: ") and sentence in errors[0], result.stderr
    assert not (tmp_path / "out" / "run").exists()


@pytest.mark.slow
def test_the_command_works_as_typed(tmp_path: Path) -> None:
    result = run_alone(tmp_path, *command(tmp_path))
    assert result.returncode == 0, result.stderr
    assert load_solver(tmp_path / "out" / "run" / "solver.json").nfe == 5
