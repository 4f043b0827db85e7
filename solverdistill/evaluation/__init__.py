"""What a student is worth: its distance to the reference beside classical solvers of equal cost, as tables and figures.

Cost is stated twice, as `nfe` (denoiser evaluations) and as `depth` (sequential network calls); a solver whose
evaluations run side by side is compared with the classical solvers of the same nfe and with those of the same depth.
"""

from solverdistill.evaluation.candidates import Candidate, classical_candidates
from solverdistill.evaluation.compare import compare
from solverdistill.evaluation.rows import Row

__all__ = ["Candidate", "Row", "classical_candidates", "compare"]
