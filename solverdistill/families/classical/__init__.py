"""Classical solvers: no params, the paper's loop in ordinary arithmetic."""
