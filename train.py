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


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(config: DictConfig) -> float:
    """Train one student; a sweep's optimiser sees the validation RMSE."""
    from solverdistill.run import train
    from solverdistill.sentences import say_and_exit

    try:
        return train(config)["rmse"]
    except Exception as error:
        say_and_exit(error, output_dir=str(config.output_dir))


if __name__ == "__main__":
    from solverdistill.launch import other_rank_arguments
    from solverdistill.sentences import say_and_exit

    sys.argv += other_rank_arguments()
    os.environ.setdefault("SOLVERDISTILL_TRACEBACK", os.environ.get("HYDRA_FULL_ERROR", ""))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hydra then lets exceptions through, for one sentence instead of six lines
    try:
        main()
    except Exception as error:
        say_and_exit(error)
    sys.exit(0)
