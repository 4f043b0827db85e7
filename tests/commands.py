"""Commands run as users type them, in a process of their own or, where the process is not the point, in this one."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import runpy
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

ROOT = Path(__file__).parents[1]
LOGGERS = (None, "solverdistill", "lightning.pytorch")  # those whose level a command sets; None is the root
Ran = subprocess.CompletedProcess[str]


def environment(folder: Path) -> dict[str, str]:
    """Variables of a process that finds this checkout, keeps its caches in `folder`/home and has one thread."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    home = str(folder / "home")
    return {**os.environ, "PYTHONPATH": path, "SOLVERDISTILL_HOME": home, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def start(folder: Path, script: str, *arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """Start a script of the repository in a process of its own, in `folder`."""
    command, pipe = [sys.executable, *launcher, str(ROOT / script), *arguments], subprocess.PIPE
    return subprocess.Popen(command, env=environment(folder), cwd=folder, stdout=pipe, stderr=pipe, text=True)


def run_alone(folder: Path, script: str, *arguments: str, launcher: tuple[str, ...] = ()) -> Ran:
    """Run a script of the repository in a process of its own, in `folder`."""
    process = start(folder, script, *arguments, launcher=launcher)
    try:
        output, errors = process.communicate(timeout=400)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.communicate()
        raise
    return Ran([script, *arguments], process.returncode, output, errors)


def run_here(folder: Path, script: str, *arguments: str) -> Ran:
    """Run a script of the repository in this process, in `folder`; it is executed as `__main__` with these arguments.

    What a process would take with it when it ends is put back: variables, working folder, search path, logging, the
    state of hydra.
    """
    output, errors = io.StringIO(), io.StringIO()
    with _kept(), contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        os.environ.update(environment(folder))
        os.chdir(folder)
        sys.argv = [str(ROOT / script), *arguments]
        code: object = 0
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
    return Ran([script, *arguments], code if isinstance(code, int) else 1, output.getvalue(), errors.getvalue())


@contextlib.contextmanager
def _kept() -> Iterator[None]:
    """Put back what a command changes in its process."""
    folder, config, loggers = os.getcwd(), HydraConfig.instance().cfg, [logging.getLogger(name) for name in LOGGERS]
    levels, handlers = [logger.level for logger in loggers], list(logging.root.handlers)
    with (
        mock.patch.dict(os.environ),
        mock.patch.object(sys, "argv", sys.argv),
        mock.patch.object(sys, "path", list(sys.path)),
        warnings.catch_warnings(),
    ):
        # The tests may have imported the module that the script runs as `__main__`.
        warnings.filterwarnings("ignore", message=".*prior to execution.*", category=RuntimeWarning)
        try:
            yield
        finally:
            os.chdir(folder)
            GlobalHydra.instance().clear()
            HydraConfig.instance().cfg = config
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            for handler in set(logging.root.handlers) - set(handlers):
                handler.close()
            logging.root.handlers[:] = handlers
