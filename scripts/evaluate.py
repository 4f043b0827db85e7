"""The same as ``solverdistill evaluate``."""

import runpy

if __name__ == "__main__":
    runpy.run_module("solverdistill.commands.evaluate", run_name="__main__", alter_sys=True)
