"""Several commands in the same processes, which torchrun starts: `torchrun tests/commands_in_turn.py FOLDER JOBS.json`.

JOBS.json is a list of commands, each a list of a script and its arguments. Each command that joins its processes meets
them at a port of its own: a second group that meets where one has met and parted finds what that one has left there.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tests.commands import run_here

if __name__ == "__main__":
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
    for command in json.loads(Path(sys.argv[2]).read_text()):
        os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)
        ran = run_here(Path(sys.argv[1]), *command)
        print(ran.stdout, flush=True)
        print(ran.stderr, file=sys.stderr, flush=True)
        if ran.returncode:
            sys.exit(f"{command} ended with {ran.returncode}")
