"""The same as ``solverdistill export``."""

import runpy

if __name__ == "__main__":
    runpy.run_module("solverdistill.commands.export", run_name="__main__", alter_sys=True)
