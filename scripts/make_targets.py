"""The same as ``solverdistill make-targets``."""

import runpy

if __name__ == "__main__":
    runpy.run_module("solverdistill.commands.make_targets", run_name="__main__", alter_sys=True)
