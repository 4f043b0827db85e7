"""The same as ``solverdistill sample``."""

import runpy

if __name__ == "__main__":
    runpy.run_module("solverdistill.commands.sample", run_name="__main__", alter_sys=True)
