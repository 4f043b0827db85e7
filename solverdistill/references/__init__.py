"""Seeds to reference trajectories, cached and served in batches."""
