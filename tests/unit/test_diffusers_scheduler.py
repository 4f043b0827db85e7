"""The scheduler's contract, without pipelines: no waiting for the device, restarts, masks, configurations."""

from __future__ import annotations

import ast
import copy
import inspect
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import solverdistill.consumers.diffusers as consumer
from solverdistill import Grid, families, sample
from solverdistill.consumers.diffusers import LearnedSolverScheduler
from solverdistill.noise.paths import make_path
from solverdistill.programs.program import SolverProgram
from solverdistill.programs.solver_file import save_solver
from solverdistill.teachers.own.conventions import Convention
from solverdistill.teachers.own.teacher import OwnTeacher
from tests.diffusers_networks import CONFIGS, AnalyticNetwork, NetworkDenoiser, assert_close_to_scale, run_loop
from tests.helpers import SHIPPED

DISCRETE = {"name": "discrete", "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "steps": 1000}
GRID = Grid(steps=4, start=40.0, end=0.03)


def make_program(name: str = "dpmpp", path: str = "edm", **options: Any) -> SolverProgram:
    family = families.build(name, GRID if path == "edm" else Grid("flow_shift", 4, 1.0, 0.03), path, **options)
    return family.program(family.init(0))


def make_scheduler(name: str = "dpmpp", kind: str = "epsilon", **options: Any) -> LearnedSolverScheduler:
    path = "flow" if kind == "flow_prediction" else "edm"
    return LearnedSolverScheduler.from_solver(make_program(name, path, **options), CONFIGS[kind])


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow_prediction"])
def test_a_step_never_waits_for_the_device(kind: str) -> None:
    """Tensors without data cannot be read: any look at one raises."""
    scheduler = make_scheduler("epd", kind, points=2)
    for begin in (0, 3):
        scheduler.set_timesteps(scheduler.nfe, device="meta")
        x = torch.randn(2, 3, 4, 4, device="meta", dtype=torch.bfloat16)
        if begin:
            x = scheduler.add_noise(x, torch.randn_like(x), scheduler.timesteps[begin : begin + 1])
        for timestep in scheduler.timesteps[begin:]:
            x = scheduler.step(scheduler.scale_model_input(x, timestep), timestep, x).prev_sample
        assert x.dtype == torch.bfloat16 and scheduler.step_index == scheduler.nfe


class NoDoubles(TorchDispatchMode):
    """Refuses float64 tensors, as devices without them do."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        assert not isinstance(result, Tensor) or result.dtype != torch.float64, func
        return result


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_devices_without_float64_can_play(dtype: torch.dtype) -> None:
    scheduler = make_scheduler("gas")
    with NoDoubles():
        scheduler.set_timesteps(scheduler.nfe)
        x = torch.ones(1, 4, dtype=dtype)
        x = scheduler.add_noise(x, x, scheduler.timesteps[:1])
        for timestep in scheduler.timesteps:
            x = scheduler.step(x, timestep, x).prev_sample
    assert x.dtype == dtype


@pytest.mark.filterwarnings("ignore:the solver asks for timestep", "ignore:this solver starts from")
@pytest.mark.parametrize("name", sorted(SHIPPED - {"gas", "bns", "s4s", "s4s_alt"}))
def test_a_restart_anywhere_is_exact_where_the_denoised_image_is_constant(name: str) -> None:
    """Every solver that is exact there, and EPD at its own levels, continues a noised image as if it had begun it."""
    program = make_program(name, **({"scale_dir": 0.0, "scale_time": 0.0} if "epd" in name else {}))
    scheduler = LearnedSolverScheduler.from_solver(program, CONFIGS["sample"])
    image, noise = torch.randn(2, 5, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    expected = sample(program, lambda x, alpha, sigma: image.repeat(len(x) // 2, 1), noise)
    for begin in range(1, scheduler.nfe):
        scheduler.set_timesteps()
        scheduler.set_begin_index(begin)
        x = scheduler.add_noise(image, noise, scheduler.timesteps[begin : begin + 1])
        for timestep in scheduler.timesteps[begin:]:
            x = scheduler.step(image, timestep, x).prev_sample
        torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-5)


def test_a_restart_beats_a_first_order_solver_from_the_same_state() -> None:
    """Started halfway on a fine solution: the first step is of first order, the others are the solver's own."""
    network = AnalyticNetwork("epsilon")
    denoiser = NetworkDenoiser(network, network.schedule)
    z, grid = torch.randn(16, 6, dtype=torch.float64), Grid(steps=10, start=40.0, end=0.03)
    level = families.build("dpmpp", grid).grid[4]
    ends = [Grid(steps=200, start=40.0, end=end) for end in (level, 0.03)]
    state, target = (list(families.build("ipndm", fine).solve(denoiser, z))[-1] for fine in ends)
    errors = []
    for name in ("dpmpp", "euler"):
        scheduler = LearnedSolverScheduler.from_solver(families.build(name, grid).program(), CONFIGS["epsilon"])
        scheduler.set_begin_index(4)
        x = state / math.hypot(1, level)
        for timestep in scheduler.timesteps[4:]:
            x = scheduler.step(network(x, timestep), timestep, x).prev_sample
        errors.append(float((x - target).pow(2).mean().sqrt()))
    assert errors[0] < 0.7 * errors[1]


def test_where_a_pipeline_begins_is_read_off_the_timestep() -> None:
    scheduler = make_scheduler()
    own = scheduler.timesteps[2:]
    places = (own[0], own[0].clone(), float(own[0]), own[0].expand(3))
    assert [scheduler._first_index(timestep) for timestep in places] == [2, 2, 2, 2]
    scheduler.set_begin_index(1)
    assert scheduler._first_index(own[0]) == scheduler.begin_index == 1
    with pytest.raises(ValueError, match="of 4 evaluations cannot begin at 4; use a larger strength"):
        scheduler.set_begin_index(4)


def test_what_a_pipeline_changes_between_steps_is_carried_on() -> None:
    """A shift of the state is a shift of the noise behind it, in place or not."""
    program, network = make_program("ipndm"), AnalyticNetwork("sample")
    image, noise = torch.randn(2, 6, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)
    shift = torch.randn(2, 6, dtype=torch.float64)
    scheduler = LearnedSolverScheduler.from_solver(program, CONFIGS["sample"], initial_noise="scaled")

    def play(change: Callable[[Tensor, float], Tensor]) -> Tensor:
        scheduler.set_timesteps()
        x = noise * scheduler.init_noise_sigma
        for k, timestep in enumerate(scheduler.timesteps):
            x = change(x, scheduler._rows[k][0]) if k == 2 else x
            x = scheduler.step(image, timestep, x).prev_sample
        return x

    expected = sample(program, lambda x, alpha, sigma: image, noise + shift)
    assert network.kind == "sample"
    torch.testing.assert_close(play(lambda x, a: x + a * shift), expected)
    torch.testing.assert_close(play(lambda x, a: x.add_(shift, alpha=a)), expected)


def test_noised_images_have_the_level_of_their_timestep() -> None:
    image, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    for kind in ("epsilon", "flow_prediction"):
        scheduler = make_scheduler(kind=kind)
        alpha, sigma = AnalyticNetwork(kind).level(scheduler.timesteps[[2, 0]])
        expected = alpha.view(2, 1, 1, 1).float() * image + sigma.view(2, 1, 1, 1).float() * noise
        torch.testing.assert_close(scheduler.add_noise(image, noise, scheduler.timesteps[[2, 0]]), expected)
        torch.testing.assert_close(scheduler.scale_noise(image, scheduler.timesteps[[2, 0]], noise), expected)


def test_zero_terminal_snr_is_exact_for_v_and_refused_for_epsilon() -> None:
    program = make_program("euler", path="flow")
    scheduler = LearnedSolverScheduler.from_solver(program, CONFIGS["v_prediction"])
    assert scheduler.timesteps[0] == 999 and scheduler.init_noise_sigma == 1
    with pytest.raises(ValueError, match="where an eps prediction has no denoised estimate"):
        LearnedSolverScheduler.from_solver(program, {**CONFIGS["v_prediction"], "prediction_type": "epsilon"})
    with pytest.raises(ValueError, match="this eps network was told pure noise"):
        LearnedSolverScheduler.from_solver(program, CONFIGS["epsilon"])
    with pytest.raises(ValueError, match="epsilon network says nothing at alpha = 0"):
        LearnedSolverScheduler.from_config({**scheduler.config, "prediction_type": "epsilon"})


def test_a_scheduler_is_its_configuration(tmp_path: Path) -> None:
    scheduler, network = make_scheduler("epd", points=2), AnalyticNetwork("epsilon")
    scheduler.save_pretrained(tmp_path)
    noise = torch.randn(2, 6)
    expected = run_loop(scheduler, network, noise)
    for again in (
        LearnedSolverScheduler.from_pretrained(tmp_path),
        LearnedSolverScheduler.from_config(scheduler.config),
        copy.deepcopy(scheduler),
        pickle.loads(pickle.dumps(scheduler)),
    ):
        assert torch.equal(run_loop(again, network, noise), expected)
    assert len(scheduler) == 1000 and scheduler.order == 1


def test_a_solver_file_alone_says_which_network_it_was_fitted_for(tmp_path: Path) -> None:
    network = AnalyticNetwork("epsilon")
    path = network.schedule.schedule.path.hyperparameters()
    program = make_program()
    save_solver(tmp_path / "solver.json", program, provenance={"teacher": {"prediction": "eps", "path": path}})
    alone = LearnedSolverScheduler.from_solver(tmp_path / "solver.json")
    given = LearnedSolverScheduler.from_solver(program, CONFIGS["epsilon"])
    torch.testing.assert_close(alone.timesteps, given.timesteps)
    assert alone.config["solver_rows"] == given.config["solver_rows"]
    save_solver(
        tmp_path / "flow.json",
        make_program(path="flow"),
        provenance={"teacher": {"prediction": "flow", "path": "flow"}},
    )
    assert LearnedSolverScheduler.from_solver(tmp_path / "flow.json").config["prediction_type"] == "flow_prediction"


def test_a_rule_of_guidance_is_told_and_its_scale_kept(tmp_path: Path) -> None:
    for scale, kept in ((3.0, 3.0), ([2.0, 4.0], None)):
        rule = {"scale": scale, "interval": [0.8, 0.2]}
        save_solver(tmp_path / "solver.json", make_program(), provenance={"guidance": rule})
        with pytest.warns(UserWarning, match="fitted with guidance .*, of which a pipeline knows a scale alone"):
            scheduler = LearnedSolverScheduler.from_solver(tmp_path / "solver.json", CONFIGS["epsilon"])
        assert scheduler.config["guidance_scale"] == kept


class IntegerNetwork(torch.nn.Module):
    """Looks its time up in a table, as networks with integer times do."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first, self.table, self.out = first, torch.nn.Embedding(1000, 6), torch.nn.Linear(6, 6)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        assert time.dtype == torch.int64
        return self.out(torch.tanh(x + self.table(time - self.first)))


@pytest.mark.parametrize(("prediction", "first"), [("eps", 0), ("v", 0), ("eps", 1)])
def test_a_network_with_integer_times_is_told_integers(prediction: str, first: int, tmp_path: Path) -> None:
    path, network = make_path(DISCRETE), IntegerNetwork(first)
    convention = Convention(prediction, "index", time_offset=first, discrete_times=True)
    teacher = OwnTeacher(network, convention, path, (6,), (1.0, 0.001))
    family = families.build("epd", Grid("time_uniform", 4, 0.97, 0.05), path)
    program = family.program(family.init(1))
    save_solver(tmp_path / "solver.json", program, provenance={"teacher": teacher.description()})
    LearnedSolverScheduler.from_solver(tmp_path / "solver.json").save_pretrained(tmp_path)
    scheduler = LearnedSolverScheduler.from_pretrained(tmp_path)
    assert scheduler.timesteps.dtype == torch.int64 and int(scheduler.timesteps.min()) >= first

    noise = torch.randn(2, 6)
    scheduler.set_timesteps(scheduler.nfe)
    x = noise
    for timestep in scheduler.timesteps:
        x = scheduler.scale_model_input(x, timestep)
        x = scheduler.step(network(x, timestep.expand(2)), timestep, x).prev_sample
    assert_close_to_scale(x, sample(program, teacher, noise), 1e-5)


def test_integer_times_of_another_schedule_are_refused(tmp_path: Path) -> None:
    facts = {"prediction": "eps", "path": make_path(DISCRETE).hyperparameters(), "discrete_times": True}
    save_solver(tmp_path / "solver.json", make_program(), provenance={"teacher": facts})
    other = {**CONFIGS["epsilon"], "beta_end": 0.03}
    with pytest.raises(ValueError, match="integer timesteps on another schedule"):
        LearnedSolverScheduler.from_solver(tmp_path / "solver.json", other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"solver_timesteps": []}, "holds no solver; make the scheduler with from_solver"),
        ({"solver_rows": [[1.0]]}, "are not those of a solver of 4 evaluations"),
        ({"prediction_type": "noise"}, "prediction_type 'noise' is unknown"),
        ({"initial_noise": "big"}, "initial_noise 'big' is unknown"),
        ({"solver_timesteps": [1.0, 2.0, 3.0, float("nan")]}, "not a finite number"),
    ],
)
def test_a_damaged_configuration_is_refused(change: dict[str, Any], message: str) -> None:
    config = {**make_scheduler().config, **change}
    with pytest.raises(ValueError, match=message):
        LearnedSolverScheduler.from_config(config)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"_class_name": "EDMEulerScheduler", "sigma_data": 0.5}, "EDMEulerScheduler preconditions its network"),
        ({"_class_name": "SomeScheduler"}, "the noise schedule of SomeScheduler is not supported"),
        ({**CONFIGS["epsilon"], "prediction_type": "x"}, "prediction 'x' is unknown"),
        (3, "a pipeline, a scheduler or its configuration is needed, not int"),
        (None, "does not say which timesteps its network takes"),
    ],
)
def test_a_network_of_another_kind_is_refused(target: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LearnedSolverScheduler.from_solver(make_program(), target)


def test_one_loop_needs_set_timesteps_before_the_next() -> None:
    scheduler = make_scheduler()
    x = run_loop(scheduler, AnalyticNetwork("epsilon"), torch.randn(1, 6))
    with pytest.raises(ValueError, match="all 4 evaluations are done; call set_timesteps"):
        scheduler.step(x, scheduler.timesteps[-1], x)


def test_levels_outside_of_the_network_and_starts_below_unit_noise_are_told() -> None:
    with pytest.warns(UserWarning, match="asks for timestep -0.8"):
        program = families.build("euler", [10.0, 0.002, 0.001]).program()
        LearnedSolverScheduler.from_solver(program, CONFIGS["epsilon"])
    with pytest.warns(
        UserWarning, match="starts from 0.9756 times unit noise and flow pipelines start from unit noise"
    ):
        LearnedSolverScheduler.from_solver(make_program(), CONFIGS["flow_prediction"])


def test_the_module_needs_nothing_but_torch_and_diffusers() -> None:
    tree = ast.parse(inspect.getsource(consumer))
    names = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)}
    parts = {name.split(".")[0] for name in names}
    assert parts == {
        "__future__",
        "collections",
        "inspect",
        "itertools",
        "math",
        "typing",
        "warnings",
        "weakref",
        "torch",
        "diffusers",
    }


def test_float16_states_do_not_drift() -> None:
    """The states live in single precision, so that a solver of 40 steps loses no more than its last rounding."""
    family = families.build("dpmpp", Grid(steps=40, start=40.0, end=0.03))
    scheduler = LearnedSolverScheduler.from_solver(family.program(), CONFIGS["sample"])
    network = AnalyticNetwork("sample")
    noise = torch.randn(4, 6).half()
    exact = run_loop(scheduler, lambda x, timestep: torch.tanh(x.float()), noise.float())
    assert network.kind == "sample"
    found = run_loop(scheduler, lambda x, timestep: torch.tanh(x.float()), noise)
    assert_close_to_scale(found, exact, 2e-3)


def test_a_learned_variance_is_left_out() -> None:
    """Pipelines hand it on where the scheduler's configuration, which is kept, says that it is learned."""
    config = {**CONFIGS["epsilon"], "variance_type": "learned_range"}
    learned = LearnedSolverScheduler.from_solver(make_program(), config)
    plain = make_scheduler()
    network, noise = AnalyticNetwork("epsilon"), torch.randn(2, 6)
    both = run_loop(learned, lambda x, t: torch.cat([network(x, t), torch.full_like(x, 7.0)], 1), noise)
    assert torch.equal(both, run_loop(plain, network, noise))


def test_a_pipeline_with_a_scale_of_its_own_is_refused() -> None:
    class StableDiffusionLatentUpscalePipeline:
        scheduler = make_scheduler()

    with pytest.raises(ValueError, match="computes with its scheduler's states"):
        LearnedSolverScheduler.from_solver(make_program(), StableDiffusionLatentUpscalePipeline())


@pytest.mark.parametrize(("takes", "outcome"), [("sigmas", "refused"), ("timesteps", "told"), ("", "taken")])
def test_a_list_of_a_pipeline_that_takes_none_is_its_own(takes: str, outcome: str) -> None:
    class Pipeline:
        scheduler = make_scheduler(kind="flow_prediction")

        if takes == "sigmas":

            def __call__(self, sigmas: Any = None) -> None: ...
        elif takes == "timesteps":

            def __call__(self, timesteps: Any = None) -> None: ...
        else:

            def __call__(self) -> None: ...

    pipe = Pipeline()
    learned = LearnedSolverScheduler.from_solver(make_program("dpmpp", "flow"), pipe)
    given = [1.0, 0.6, 0.3, 0.1]
    if outcome == "refused":
        with pytest.raises(ValueError, match="call the pipeline without sigmas"):
            learned.set_timesteps(sigmas=given)
    elif outcome == "told":
        with pytest.warns(UserWarning, match="not the sigmas of the pipeline"):
            learned.set_timesteps(sigmas=given)
    else:
        learned.set_timesteps(sigmas=given)
    with pytest.raises(ValueError, match="call the pipeline without sigmas"):
        copy.deepcopy(learned).set_timesteps(sigmas=given)  # knows no pipeline


def test_a_pipeline_that_writes_into_its_state_changes_nothing() -> None:
    learned, network, noise = make_scheduler("epd", points=2), AnalyticNetwork("epsilon"), torch.randn(2, 6)
    expected = run_loop(learned, network, noise)
    learned.set_timesteps()
    x = noise.clone()
    for timestep in learned.timesteps:
        given = learned.scale_model_input(x, timestep)
        output = network(given, timestep)
        x[:] = learned.step(output, timestep, x).prev_sample
        output.fill_(torch.nan)
    assert torch.equal(x, expected)
