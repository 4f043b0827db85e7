"""`python -m solverdistill`: the same commands as `solverdistill`."""

from __future__ import annotations

from solverdistill.commands.main import main

if __name__ == "__main__":
    main()
