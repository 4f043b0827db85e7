"""The executor and the table's own checks, with denoisers that record what they saw."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from solverdistill import Grid, families
from solverdistill.programs import program
from solverdistill.programs.playing import Evaluation, repeat_cond, sample
from solverdistill.programs.program import SolverProgram
from solverdistill.teachers.mixture import toy_mixture


class Recorder:
    """A linear denoiser that keeps its arguments."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, ...]] = []
        self.conds: list[object] = []

    def __call__(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: object = None) -> Tensor:
        self.calls.append((x, alpha, sigma))
        self.conds.append(cond)
        return 0.5 * x + sigma[:, None]


def epd(points: int = 2, steps: int = 3) -> SolverProgram:
    family = families.build("epd", Grid("polynomial", steps), points=points, afs=True)
    return family.program(family.init(0))


def two_row_program(**changes: object) -> SolverProgram:
    fields = {
        "alpha": torch.tensor([0.6, 0.8], dtype=torch.float64),
        "sigma": torch.tensor([0.8, 0.6], dtype=torch.float64),
        "A": torch.tensor([[1.0], [0.5], [0.25]], dtype=torch.float64),
        "B": torch.tensor([[0.0, 0.0], [0.5, 0.0], [0.1, 0.2]], dtype=torch.float64),
        "mask": torch.tensor([[1, 0, 0], [1, 1, 0], [1, 1, 1]], dtype=torch.bool),
        "stages": ((0,), (1,)),
        "level": torch.ones(3, 2, dtype=torch.float64),
    }
    return SolverProgram(**{**fields, **changes})


def test_a_table_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """When it is made, and not again where its values stay: gradients and device are no part of what is checked."""
    made = two_row_program(B=torch.tensor([[0.0, 0.0], [0.5, 0.0], [0.1, 0.2]], dtype=torch.float64).requires_grad_())
    monkeypatch.setattr(program, "_find_problem", lambda table: pytest.fail("checked again"))
    kept, moved = made.detach().to("cpu"), made.to("meta")
    assert made.B.requires_grad and not kept.B.requires_grad and kept.stages == made.stages
    assert all(torch.equal(getattr(kept, name), getattr(made, name)) for name in ("alpha", "sigma", "A", "B", "mask"))
    assert {getattr(moved, name).device.type for name in ("alpha", "sigma", "A", "B", "mask", "level")} == {"meta"}


def test_sample_follows_the_table() -> None:
    program, denoiser, z = two_row_program(), Recorder(), torch.randn(4, 3, dtype=torch.float64)
    result = sample(program, denoiser, z)
    d0 = 0.5 * z + 0.8
    d1 = 0.5 * (0.5 * z + 0.5 * d0) + 0.6
    torch.testing.assert_close(result, 0.25 * z + 0.1 * d0 + 0.2 * d1)
    assert [float(call[2][0]) for call in denoiser.calls] == [0.8, 0.6]
    assert all(call[1].shape == (4,) for call in denoiser.calls)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigma": torch.ones(3, dtype=torch.float64)}, "sigma has shape"),
        ({"A": torch.full((3, 1), float("nan"), dtype=torch.float64)}, "A has a number that is not finite"),
        ({"alpha": torch.tensor([-0.6, 0.8], dtype=torch.float64)}, "negative"),
        ({"mask": torch.ones(3, 3, dtype=torch.bool)}, "evaluation row 0 is not causal"),
        ({"mask": torch.tensor([[1, 0, 0], [1, 0, 0], [1, 1, 1]], dtype=torch.bool)}, "outside the mask"),
        ({"stages": ((0, 1),)}, "evaluation 1 runs before or beside evaluation 0"),
        ({"stages": ((1,), (0,))}, "evaluation 1 runs before or beside"),
        ({"stages": ((0,),)}, "do not hold each of the 2 evaluations once"),
        ({"level": torch.ones(2, 2, dtype=torch.float64)}, "level has shape"),
    ],
)
def test_a_table_that_is_no_solver_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        two_row_program(**changes)


def test_program_is_frozen() -> None:
    with pytest.raises(AttributeError):
        two_row_program().alpha = torch.zeros(2)  # type: ignore[misc]


def test_a_stage_is_one_call_and_stage_batch_splits_it() -> None:
    program, z = epd(points=3), torch.randn(4, 2, dtype=torch.float64)
    whole, split = Recorder(), Recorder()
    expected = sample(program, whole, z)
    assert [len(call[0]) for call in whole.calls] == [4 * len(stage) for stage in program.stages]
    assert len(whole.calls) == program.depth
    torch.testing.assert_close(sample(program, split, z, stage_batch=5), expected, rtol=0, atol=0)
    assert max(len(call[0]) for call in split.calls) == 5
    assert sum(len(call[0]) for call in split.calls) == 4 * program.nfe


def test_cond_is_a_pytree_repeated_for_the_points_of_a_stage() -> None:
    program, denoiser = epd(points=2, steps=1), Recorder()
    cond = {"label": torch.tensor([3, 5]), "scale": 2.0, "mask": torch.tensor(1.0)}
    sample(program, denoiser, torch.randn(2, 2, dtype=torch.float64), cond)
    seen = denoiser.conds[0]
    assert seen["label"].tolist() == [3, 5, 3, 5]  # type: ignore[index]
    assert seen["scale"] == 2.0 and seen["mask"].ndim == 0  # type: ignore[index]


def test_cond_of_another_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="first dimension must be 4"):
        repeat_cond({"label": torch.zeros(3)}, batch=4, times=2)


def test_callback_sees_every_evaluation_in_order_of_stages() -> None:
    program, seen = epd(), list[Evaluation]()
    teacher = toy_mixture()
    sample(program, teacher, torch.randn(3, 6, dtype=torch.float64), callback=seen.append)
    assert [e.index for e in seen] == [k for stage in program.stages for k in stage]
    assert {e.nfe for e in seen} == {program.nfe}
    assert all(e.denoised.shape == (3, 6) for e in seen)
    assert [e.stage for e in seen] == sorted(e.stage for e in seen)


def test_readouts_end_with_the_sample() -> None:
    program, teacher, z = epd(), toy_mixture(), torch.randn(3, 6, dtype=torch.float64)
    states = sample(program, teacher, z, readouts=True)
    assert states.shape == (3, 3, 6) and len(program.readouts) == 3
    torch.testing.assert_close(states[-1], sample(program, teacher, z), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_are_float32_whatever_the_network_returns(dtype: torch.dtype) -> None:
    program = two_row_program()
    seen = []

    def half(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        seen.append(x.dtype)
        return (0.5 * x).to(dtype)

    assert sample(program, half, torch.randn(2, 3, dtype=dtype)).dtype == torch.float32
    assert seen == [torch.float32, torch.float32]


def test_wrong_number_of_inputs_is_refused() -> None:
    z = torch.randn(2, 3)
    with pytest.raises(ValueError, match="takes 1 input"):
        sample(two_row_program(), Recorder(), (z, z))


def test_gradients_reach_every_structural_coefficient() -> None:
    program, teacher, z = epd().detach(), toy_mixture(), torch.randn(5, 6, dtype=torch.float64)
    leaves = {name: getattr(program, name).clone().requires_grad_() for name in ("A", "B", "alpha", "sigma")}
    sample(replace(program, **leaves), teacher, z).square().sum().backward()
    used = program.mask.clone()
    used[program.nfe : -1] = False  # readouts before the sample do not act on it
    table = torch.cat([leaves["A"].grad, leaves["B"].grad], dim=1)
    assert bool((table[used] != 0).all()) and bool((table[~used] == 0).all())
    assert bool((leaves["alpha"].grad != 0).all()) and bool((leaves["sigma"].grad != 0).all())


@pytest.mark.filterwarnings("ignore:Guards may run slower on Python:RuntimeWarning")  # of torch, on 3.13.0 alone
def test_compiled_denoiser_gives_the_same_sample() -> None:
    program, teacher, z = epd(), toy_mixture(), torch.randn(3, 6, dtype=torch.float64)
    compiled = torch.compile(teacher, backend="aot_eager")
    torch.testing.assert_close(sample(program, compiled, z), sample(program, teacher, z), rtol=0, atol=1e-12)
