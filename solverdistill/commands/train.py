"""Distil a solver.

    solverdistill train solver=epd model=edm_digits solver.nfe=5
    solverdistill train -m solver=epd,gas solver.nfe=5,8
    solverdistill train model=callable model.target=my_net.load ...
    solverdistill train --config-dir conf model=mine

Networks of your own are imported from the working folder as well, and `--config-dir` names a folder with choices of
your own, for example conf/model/mine.yaml.
"""

from __future__ import annotations

from typing import Any

from solverdistill.commands.entry import command


@command("train")
def main(config: dict[str, Any]) -> float:
    """Train one student; a sweep's optimiser sees the validation RMSE."""
    from solverdistill.training.run import train

    return train(config)["rmse"]


if __name__ == "__main__":
    main()
