"""What commands share around their own work: hydra's settings, the working folder, mistakes told in one sentence."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from solverdistill.support.files import check_writable
from solverdistill.support.mistakes import say_and_exit
from solverdistill.training.config_files import find_configs
from solverdistill.training.launch import other_rank_arguments

ENVIRONMENT = {
    # GNU OpenMP's threads wait by spinning, which costs a small network several times its time on a machine that does
    # other work as well; sleeping at once costs twice its time on an idle one. A short spin is close to the best of
    # both.
    "GOMP_SPINCOUNT": "1000",
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # DDP's hints about unused parameters, in every process
}

WITH_PATH = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--experimental-rerun")


def command(config_name: str, log_to: str | None = None) -> Callable[[Callable[[Any], Any]], Callable[[], None]]:
    """Make the `main` of a command out of what it does with its configuration, given as plain containers.

    torch must not be loaded before.

    Args:
        config_name: The shipped configuration that it reads.
        log_to: Where a command without an output folder logs to, hydra's `stdout` or `none`; None for one whose output
            folder hydra makes.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("run_name", run_name, replace=True)

    def decorate(work: Callable[[Any], Any]) -> Callable[[], None]:
        @hydra.main(version_base="1.3", config_path=str(find_configs()), config_name=config_name)
        @wraps(work)
        def told(config: Any) -> Any:
            try:
                if not log_to:
                    check_writable("output_dir", Path(config.output_dir))
                return work(OmegaConf.to_container(config, resolve=True))
            except Exception as error:
                made = (str(config.output_dir), HydraConfig.get().runtime.output_dir) if not log_to else ()
                say_and_exit(error, made)

        def main() -> None:
            for name, value in ENVIRONMENT.items():
                os.environ.setdefault(name, value)
            os.environ.setdefault("SOLVERDISTILL_TRACEBACK", os.environ.get("HYDRA_FULL_ERROR", ""))
            os.environ["HYDRA_FULL_ERROR"] = "1"  # hydra then lets exceptions through, for one sentence, not six lines
            sys.path.append(os.getcwd())  # where a network of your own lies
            if {"-h", "--help"} & set(sys.argv[1:]):
                print(work.__globals__["__doc__"])
            flags, overrides = divide(sys.argv[1:])
            if log_to:
                overrides = ["hydra.run.dir=.", "hydra.output_subdir=null", f"hydra/job_logging={log_to}", *overrides]
            else:
                overrides += other_rank_arguments()
            sys.argv[1:] = flags + overrides
            try:
                told()  # pyright: ignore[reportCallIssue] hydra passes the configuration
            except Exception as error:
                say_and_exit(error)

        return main

    return decorate


def run_name(chosen: str, model: str, solver: Any, start: str | None) -> str:
    """Name of a run: solver, model and what a sample costs, nfe5 or depth3; or what it begins at, and the model."""
    if start is not None:  # the file says what the solver is, and what it costs
        return f"start-{Path(str(start).removeprefix('zoo:')).name.removesuffix('.json')}-{model}"
    cost = f"nfe{6 if solver.nfe is None else solver.nfe}" if solver.get("depth") is None else f"depth{solver.depth}"
    return f"{chosen}-{model}-{cost}"


def divide(words: list[str]) -> tuple[list[str], list[str]]:
    """Flags of hydra with their values, and overrides, which hydra wants all in one place."""
    flags, overrides = [], []
    for before, word in zip(["", *words], words, strict=False):
        is_override = word.startswith("~") or ("=" in word and not word.startswith("-"))
        (overrides if is_override and before not in WITH_PATH else flags).append(word)
    return flags, overrides


@contextmanager
def one_sentence() -> Iterator[None]:
    """Tell a mistake within in one sentence; end quietly where nobody reads on (`solverdistill zoo list | head`)."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        say_and_exit(error)
