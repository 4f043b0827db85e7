"""Several commands in the same processes, which torchrun starts: `torchrun tests/commands_in_turn.py FOLDER JOBS.json`.

JOBS.json is a list of commands, each a list of a script and its arguments.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.commands import run_here

if __name__ == "__main__":
    for command in json.loads(Path(sys.argv[2]).read_text()):
        ran = run_here(Path(sys.argv[1]), *command)
        print(ran.stdout, flush=True)
        print(ran.stderr, file=sys.stderr, flush=True)
        if ran.returncode:
            sys.exit(f"{command} ended with {ran.returncode}")
