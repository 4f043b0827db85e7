"""Which grid, and which solver, to start from."""
