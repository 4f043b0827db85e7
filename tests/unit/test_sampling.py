"""Images of seeds and classes: the same in every batch, in their places, refused where there is nothing to see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from solverdistill import Grid, families, save_solver
from solverdistill.denoisers.guidance import make_guided
from solverdistill.denoisers.wrappers import Guided
from solverdistill.evaluation.sampling import SamplingPlan, contact_sheet, draw, parse_seeds, save_images
from solverdistill.teachers.mixture import Mixture, toy_mixture
from tests.commands import run_alone, run_here

SCRIPT, OUT = "scripts/sample.py", "hydra.run.dir=out"
PROGRAM = families.build("ipndm", Grid(steps=3)).program()


def tiles() -> Mixture:
    generator = torch.Generator().manual_seed(0)
    means = (torch.rand(4, 1, 8, 8, generator=generator, dtype=torch.float64) * 2 - 1).round()
    return Mixture(means, [1.0] * 4, [0.1] * 4, labels=[0, 1, 2, 2], name="tiles")


def made(plan: SamplingPlan, teacher: Any = None, denoiser: Any = None) -> dict[str, Tensor]:
    teacher = teacher or tiles()
    return {wanted.name: image for wanted, image in draw(plan, PROGRAM, teacher, denoiser or teacher)}


@pytest.mark.parametrize("classes", [None, [2, 0]])
def test_an_image_depends_on_its_seed_and_class_alone(classes: list[int] | None) -> None:
    whole = made(SamplingPlan([0, 3, 5, 9], classes, batch_size=64))
    assert len(whole) == 4 * len(classes or [None])
    for plan in (SamplingPlan([9, 5, 3, 0, 7], classes, batch_size=3), SamplingPlan([3], classes, batch_size=1)):
        found = made(plan)
        for name in set(found) & set(whole):
            torch.testing.assert_close(found[name], whole[name], rtol=0, atol=1e-6)
    one, other = list(whole.values())[:2]
    assert (one - other).abs().max() > 0.1


def test_a_class_gives_images_of_that_class() -> None:
    means = tiles().means
    for name, image in made(SamplingPlan([0, 1, 2], [0, 1])).items():
        nearest = int((means - image.double().flatten()).square().sum(1).argmin())
        assert nearest == int(name[5:9])


def test_drawn_guidance_scales_are_kept_with_chosen_classes() -> None:
    teacher, guided = make_guided(tiles(), {"scale": [1.0, 3.0]})
    drawn = made(SamplingPlan([0, 1], [1]), teacher, guided)
    plain = made(SamplingPlan([0, 1], [1]), tiles(), Guided(tiles(), 1.0, tiles().null_cond))
    assert list(drawn) == list(plain)
    assert all((drawn[name] - plain[name]).abs().max() > 1e-3 for name in drawn)


def test_files_hold_the_pixels_and_the_grid_has_a_row_for_every_class(tmp_path: Path) -> None:
    import numpy
    from PIL import Image

    plan = SamplingPlan([4, 1, 2], [1, 0], batch_size=4)
    files = save_images(draw(plan, PROGRAM, tiles(), tiles()), plan, tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in files[:2]] == [
        "grid.png",
        "images/class0001-seed000004.png",
    ]
    assert len(files) == 7 and len(list(tmp_path.rglob("*"))) == 8
    for name, image in made(plan).items():
        with Image.open(tmp_path / "images" / f"{name}.png") as stored:
            pixels = numpy.array(stored)
        expected = ((image[0].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        assert (torch.from_numpy(pixels).int() - expected.int()).abs().max() <= 1
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (3 * 66 + 2, 2 * 66 + 2)


def test_the_sheet_repeats_pixels() -> None:
    images = [torch.randint(0, 255, (8, 8, 3), dtype=torch.uint8) for _ in range(3)]
    sheet = contact_sheet(images, 2)
    assert sheet.shape == (2 * 66 + 2, 2 * 66 + 2, 3)
    assert torch.equal(sheet[68:132:8, 2:66:8], images[2]) and (sheet[68:, 68:] == 255).all()


def test_seeds_are_read_as_people_write_them() -> None:
    assert parse_seeds("0-3") == [0, 1, 2, 3] and parse_seeds(7) == [7] and parse_seeds([1, 2]) == [1, 2]
    assert parse_seeds("1, 4,8-10") == [1, 4, 8, 9, 10]
    for text in ("a", "1-", "-3", "1..4"):
        with pytest.raises(ValueError, match="0-15"):
            parse_seeds(text)


def test_what_cannot_be_sampled_is_refused() -> None:
    for plan, teacher, message in (
        (SamplingPlan([0]), toy_mixture(), r"samples of shape \(6,\), which are no images"),
        (SamplingPlan([0], [0]), toy_mixture(), "takes no class or prompt numbers"),
        (SamplingPlan([0], [3, 1]), tiles(), r"classes of tiles are 0 to 2, not \[1, 3\]"),
    ):
        with pytest.raises(ValueError, match=message):
            made(plan, teacher)
    for options, message in (({"seeds": []}, "one or more"), ({"seeds": [-1]}, "2.30"), ({"classes": []}, "classes")):
        with pytest.raises(ValueError, match=message):
            SamplingPlan(**options)


@pytest.mark.slow
def test_the_script_writes_the_folder(tmp_path: Path) -> None:
    file = save_solver(tmp_path / "solver.json", PROGRAM)
    ran = run_alone(tmp_path, SCRIPT, "model=digits_kde", f"solver_file={file}", "seeds=0-2", "classes=[1]", OUT)
    assert ran.returncode == 0, ran.stderr
    assert len(list((tmp_path / "out" / "images").glob("class0001-seed*.png"))) == 3
    assert "3 images, nfe 3, depth 3: grid.png and images/ are in" in ran.stdout


def test_every_prompt_is_played_with_every_seed(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    from PIL import Image

    from tests.pipeline_folders import stable_diffusion

    (tmp_path / "pipeline").mkdir()
    weights = stable_diffusion(tmp_path / "pipeline")
    program = families.build("euler", Grid("time_uniform", steps=2, start=1.0, end=1e-3), "vp").program()
    file = save_solver(tmp_path / "solver.json", program, provenance={"guidance": 2.0})
    prompts = 'prompts=["a fox", "a cat"]'
    settings = ["model=sd15", f"model.weights={weights}", f"solver_file={file}", prompts, "seeds=0-2"]
    ran = run_here(tmp_path, SCRIPT, *settings, OUT)
    assert ran.returncode == 0, ran.stderr
    names = sorted(path.name for path in (tmp_path / "out" / "images").iterdir())
    assert names == [f"class{number:04d}-seed{seed:06d}.png" for number in range(2) for seed in range(3)]
    with Image.open(tmp_path / "out" / "images" / names[0]) as image:
        assert image.size == (16, 16) and image.mode == "RGB"
