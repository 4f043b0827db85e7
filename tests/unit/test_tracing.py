"""What the tracer records, and what it refuses by name."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from solverdistill.noise.levels import Level, make_level
from solverdistill.programs.playing import sample
from solverdistill.programs.tracing import Eager, Register, Trace

HALF = make_level(0.5, 2.0)


def test_linear_arithmetic_is_recorded() -> None:
    trace = Trace()
    (x,) = trace.inputs
    denoised = trace(x * 2 - x / 4, HALF)
    two = torch.tensor(2.0, dtype=torch.float64)
    trace.readout(two * x + denoised - (-denoised), HALF)
    program = trace.program()
    assert program.A[:, 0].tolist() == [1.75 / math.hypot(0.5, 2.0), 2.0]
    assert program.B.tolist() == [[0.0], [2.0]]


def test_zero_by_value_stays_in_the_structure() -> None:
    trace = Trace()
    (x,) = trace.inputs
    denoised = trace(x, HALF)
    trace.readout(x + denoised * 0.0, HALF)
    assert trace.program().mask.tolist() == [[True, False], [True, True]]


def test_independent_evaluations_form_a_stage() -> None:
    trace = Trace()
    (x,) = trace.inputs
    first = trace(x, HALF)
    pair = [trace(x + first * k, HALF) for k in (1.0, 2.0)]
    trace.readout(pair[0] + pair[1], HALF)
    assert trace.program().stages == ((0,), (1, 2))


def test_the_told_level_scales_the_row_and_the_own_level_is_metadata() -> None:
    trace = Trace()
    (x,) = trace.inputs
    trace.readout(trace(x, make_level(1.0, 3.0), told=make_level(1.0, 4.0)), HALF)
    program = trace.program()
    h = math.hypot(1.0, 4.0)
    assert [float(program.alpha[0]), float(program.sigma[0])] == pytest.approx([1 / h, 4 / h])
    assert float(program.A[0, 0]) == pytest.approx(1 / h)
    assert program.level[0].tolist() == pytest.approx([1 / h, 3 / h])


def test_a_negative_told_alpha_becomes_zero() -> None:
    trace = Trace()
    (x,) = trace.inputs
    trace.readout(trace(x, make_level(0.0, 1.0), told=make_level(-0.1, 1.1)), HALF)
    program = trace.program()
    assert float(program.alpha[0]) == 0.0 and float(program.sigma[0]) == 1.0
    seen: list[Tensor] = []

    def spy(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        seen.extend([alpha, sigma])
        return x

    z = torch.ones(2, 1, dtype=torch.float64)
    eager = Eager(spy)(z, make_level(0.0, 1.0), make_level(-0.1, 1.1))
    assert seen[0].tolist() == [0.0, 0.0] and seen[1].tolist() == [1.0, 1.0]
    torch.testing.assert_close(eager, sample(program, spy, z))


@pytest.mark.parametrize(
    "misuse",
    [
        lambda x: x * x,
        lambda x: x + 1.0,
        lambda x: x / x,
        lambda x: torch.clamp(x, -1, 1),
        lambda x: x * torch.ones(3),
        lambda x: 1 if x else 0,
    ],
)
def test_what_is_not_linear_is_refused(misuse: object) -> None:
    (x,) = Trace().inputs
    with pytest.raises(TypeError, match="traced state|multiplied|divided"):
        misuse(x)  # type: ignore[operator]


def test_tensor_scalars_work_from_both_sides_and_keep_gradients() -> None:
    (x,) = Trace().inputs
    factor = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    both = factor * x + x * factor
    assert isinstance(both, Register) and both.row.requires_grad
    both.row.sum().backward()
    assert float(factor.grad) == 2.0  # type: ignore[arg-type]


def test_level_defaults_to_the_states_own() -> None:
    trace = Trace(inputs=2)
    trace.readout(trace(trace.inputs[1], Level(*make_level(1.0, 0.0))), HALF)
    program = trace.program()
    assert program.inputs == 2 and program.sigma.tolist() == [0.0] and program.A[0].tolist() == [0.0, 1.0]
