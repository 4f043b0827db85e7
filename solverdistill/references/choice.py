"""A chosen reference, and what is known of its error."""

from __future__ import annotations

from dataclasses import dataclass

from solverdistill.references.solving import Reference

PART = 0.1  # of the error that a student is expected to reach, which the reference may have
COARSELY = 3.0  # a student's error below so many times the reference's says little


@dataclass(frozen=True)
class Choice:
    """A reference, and what is known of its error.

    Args:
        reference: The reference solver.
        error: RMSE of its end points against the exact solution, mean over the samples, in data units; None where it
            was not measured.
        expected: RMSE that the student is expected to reach.
        samples: Samples that were measured.
        falls: Times by which the last doubling of the steps lowered the error, where the network's dependence on time
            is rough; None where it is smooth.
        apart: Distance of solves on two grids that each promised to be nearer to the exact solution; None where they
            agree.
        extrapolated: Whether the error is that of fewer steps, lowered as its order says.
        evaluations: Images that the network evaluated to find it.
    """

    reference: Reference
    error: float | None = None
    expected: float | None = None
    samples: int = 0
    falls: float | None = None
    apart: float | None = None
    extrapolated: bool = False
    evaluations: int = 0

    @property
    def facts(self) -> dict[str, float | int]:
        """What a solver's file says of the error."""
        return {} if self.error is None else {"error": float(f"{self.error:.3g}"), "error_samples": self.samples}

    def summary(self) -> str:
        """The choice in a sentence or two."""
        one = self.reference
        grid = "" if one.nested is not None else f" on the {one.grid} grid"
        what = f"reference {one.solver}, {one.steps} steps{grid}"
        if self.error is None or self.expected is None:
            return f"{what}; reference error not measured"
        how = "extrapolated from" if self.extrapolated else "on"
        samples = f"{self.samples} sample{'s' * (self.samples > 1)}"
        said = f"{what}: RMSE {self.error:.2g} from the exact solution, {how} {samples}"
        said += f" (students are expected at {self.expected:.2g})"
        if self.error > PART * self.expected:
            said += f", above the {PART * self.expected:.2g} wanted"
        if self.falls is not None:
            said += f"; rough in time: twice the steps divide the error by {self.falls:.1f}, where 4 is usual"
        elif self.apart is not None:
            said += f"; rough in time: two grids that promised to be nearer end {self.apart:.2g} apart"
        if self.falls is not None or self.apart is not None:
            said += ". The network may change faster with time than coarse references see, which are then wrong unseen"
        return said


def is_coarse(error: float, reference_error: float | None) -> bool:
    """Whether a student's error is too near to the reference's own to say much."""
    return reference_error is not None and error <= COARSELY * reference_error
