"""Images from a solver file and its teacher: grid.png and a folder of PNG files.

    solverdistill sample model=edm_digits solver_file=outputs/a/solver.json seeds=0-63
    solverdistill sample model=edm_digits solver_file=a.json classes=[0,1,2] seeds=0-9
    solverdistill sample model=sd15 solver_file=a.json 'prompts=["a red fox in the snow"]' seeds=0-3 batch_size=4

An image depends on its seed and its class or prompt alone: not on the batch size, the device's generator or the other
images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from solverdistill.commands.entry import command


@command("sample")
def main(config: dict[str, Any]) -> None:
    """Load solver and teacher, make the images and write them."""
    from solverdistill.denoisers.guidance import make_guided
    from solverdistill.evaluation.sampling import SamplingPlan, draw, parse_seeds, save_images
    from solverdistill.programs.solver_file import read_solver
    from solverdistill.support.instantiate import instantiate
    from solverdistill.support.processes import pick_device
    from solverdistill.support.progress import TargetProgress, console

    file, prompts, classes = read_solver(config["solver_file"]), config["prompts"], config["classes"]
    guidance = (file.provenance.get("guidance") or 1.0) if config["guidance"] is None else config["guidance"]
    own = {} if prompts is None else {"prompts": prompts}
    teacher = instantiate({**config["model"], **own}, "model")
    if prompts is not None and classes is None:
        classes = list(range(teacher.conditions.count))
    plan = SamplingPlan(parse_seeds(config["seeds"]), classes, config["batch_size"], config["grid_images"])
    teacher, denoiser = make_guided(teacher, guidance)
    if file.teacher.get("fingerprint") not in (None, teacher.fingerprint()):
        console().print(f"note: the solver was fitted to another teacher, {file.teacher.get('name')}", soft_wrap=True)
    device = pick_device(config["device"])
    bar, total, output = TargetProgress("images"), len(plan.wanted), Path(config["output_dir"])
    images = draw(plan, file.program, teacher, denoiser.to(device), device, lambda done: bar(teacher.name, done, total))
    save_images(images, plan, output)
    console().print(
        f"{total} images, nfe {file.program.nfe}, depth {file.program.depth}: grid.png and images/ are in {output}",
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
