"""The commands of `solverdistill`; thin doors over the package."""
