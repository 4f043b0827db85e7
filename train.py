"""Distil a solver: ``python train.py solver=epd model=edm_digits solver.nfe=5``."""

import runpy

if __name__ == "__main__":
    runpy.run_module("solverdistill.commands.train", run_name="__main__", alter_sys=True)
