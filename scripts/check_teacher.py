"""The same as ``solverdistill check-teacher``."""

import runpy

if __name__ == "__main__":
    runpy.run_module("solverdistill.commands.check_teacher", run_name="__main__", alter_sys=True)
