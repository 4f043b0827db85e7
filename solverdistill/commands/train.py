"""Distil a solver: ``python train.py solver=epd model=edm_digits solver.nfe=5``; ``--help`` lists all choices."""

from __future__ import annotations

import os
import sys

# GNU OpenMP's threads wait by spinning, which costs a small network several times its time on a machine that does other
# work as well; sleeping at once costs twice its time on an idle one. A short spin is close to the best of both.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP's hints about unused parameters, in every process

import hydra  # noqa: E402
from omegaconf import DictConfig  # noqa: E402

from solverdistill.training.config_files import find_configs  # noqa: E402


@hydra.main(version_base="1.3", config_path=str(find_configs()), config_name="train")
def main(config: DictConfig) -> float:
    """Train one student; a sweep's optimiser sees the validation RMSE."""
    from solverdistill.support.mistakes import say_and_exit
    from solverdistill.training.run import train

    try:
        return train(config)["rmse"]
    except Exception as error:
        say_and_exit(error, output_dir=str(config.output_dir))


if __name__ == "__main__":
    from solverdistill.support.mistakes import say_and_exit
    from solverdistill.training.launch import other_rank_arguments

    sys.argv += other_rank_arguments()
    os.environ.setdefault("SOLVERDISTILL_TRACEBACK", os.environ.get("HYDRA_FULL_ERROR", ""))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hydra then lets exceptions through, for one sentence instead of six lines
    try:
        main()
    except Exception as error:
        say_and_exit(error)
    sys.exit(0)
