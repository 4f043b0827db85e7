"""The same as ``solverdistill import``."""

import runpy

if __name__ == "__main__":
    runpy.run_module("solverdistill.commands.import_coefficients", run_name="__main__", alter_sys=True)
