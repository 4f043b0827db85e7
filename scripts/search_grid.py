"""The same as ``solverdistill search-grid``."""

import runpy

if __name__ == "__main__":
    runpy.run_module("solverdistill.commands.search_grid", run_name="__main__", alter_sys=True)
