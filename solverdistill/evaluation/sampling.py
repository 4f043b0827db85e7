"""Images from a solver and a teacher: one for every seed and class, the same whatever the batch size."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from solverdistill.denoisers.base import Denoiser, Teacher
from solverdistill.evaluation.pixels import to_pixels
from solverdistill.programs.playing import sample
from solverdistill.programs.program import SolverProgram
from solverdistill.references.seeding import SPLITS, seeded_noise
from solverdistill.support.memory import lower
from solverdistill.support.type_checks import check_fields, check_range, check_ranges

MOST_IMAGES = 1_000_000  # of one call; twenty times what a Frechet distance takes
CELL, GAP = 64, 2  # smallest side of an image in the grid, and the space between images, in pixels


class Wanted(NamedTuple):
    """An image to make: its seed, and its class or prompt number, None for the one that the seed draws."""

    seed: int
    label: int | None

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"seed{self.seed:06d}" if self.label is None else f"class{self.label:04d}-seed{self.seed:06d}"


@dataclass(frozen=True)
class SamplingPlan:
    """Which images are made.

    Args:
        seeds: Seeds, each of which has noise of its own that no training or evaluation has seen.
        classes: Class labels, or numbers of prompts: every one with every seed; None lets each seed draw its own.
        batch_size: Images per network call and stage.
        grid_images: Largest number of images in the grid.
    """

    seeds: list[int] = field(default_factory=lambda: list(range(16)))
    classes: list[int] | None = None
    batch_size: int = 64
    grid_images: int = 256

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.seeds or not all(type(seed) is int and 0 <= seed < 1 << 30 for seed in self.seeds):
            raise ValueError(f"seeds must be one or more integers from 0 to 2^30 - 1, not {self.seeds}")
        if self.classes is not None and (not self.classes or any(type(label) is not int for label in self.classes)):
            raise ValueError(f"classes must be one or more integers, or null, not {self.classes}")
        check_ranges(self, "", "batch_size", "grid_images", least=1)
        images = len(self.seeds) * len(self.classes or [None])
        check_range("number of images", images, most=MOST_IMAGES)

    @property
    def wanted(self) -> list[Wanted]:
        """All images, class by class."""
        return [Wanted(seed, label) for label in self.classes or [None] for seed in self.seeds]


def parse_seeds(text: str | int | Sequence[int]) -> list[int]:
    """Seeds from "0-15", "3", "1,4,8-11", a number or a list.

    Raises:
        ValueError: the text is none of these.
    """
    if not isinstance(text, (str, int)):
        return [int(seed) for seed in text]
    seeds: list[int] = []
    for part in str(text).replace(" ", "").split(","):
        first, _, last = part.partition("-")
        if re.fullmatch(r"\d{1,18}(-\d{1,18})?", part) is None:
            raise ValueError(f"seeds must look like 0-15 or 1,4,8-11, not {text!r}")
        check_range("number of seeds", int(last or first) + 1 - int(first) + len(seeds), most=MOST_IMAGES)
        seeds += range(int(first), int(last or first) + 1)
    return seeds


def draw(
    plan: SamplingPlan,
    program: SolverProgram,
    teacher: Teacher,
    denoiser: Denoiser,
    device: torch.device | str = "cpu",
    report: Callable[[int], None] | None = None,
) -> Iterator[tuple[Wanted, Tensor]]:
    """Make the images, batch by batch, in the order of the plan.

    Args:
        plan: Seeds and classes.
        program: The solver.
        teacher: Gives shape, conditions and the decoder.
        denoiser: The teacher, possibly guided, on `device`.
        device: Where the network runs.
        report: Called with the number of images that are done.
    Yields:
        Every image in [-1, 1], shape (channels, height, width), with what it is.
    Raises:
        ValueError: classes are asked of a teacher that has none, or one is out of range.
    """
    wanted, done = plan.wanted, 0
    for start in range(0, len(wanted), plan.batch_size):
        batch = wanted[start : start + plan.batch_size]
        noise, cond = seeded_noise([SPLITS["fresh"] + image.seed for image in batch], teacher)
        cond = _chosen(batch, cond, teacher)
        noise, cond = pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, (noise, cond))
        with torch.inference_mode(), lower("sampling", f"lower batch_size ({plan.batch_size})"):
            images = teacher.decode(sample(program, denoiser, noise, cond)).float().cpu()
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"{teacher.name} gives samples of shape {tuple(images.shape[1:])}, which are no images")
        yield from zip(batch, images, strict=True)
        done += len(batch)
        if report is not None:
            report(done)


def save_images(images: Iterator[tuple[Wanted, Tensor]], plan: SamplingPlan, folder: Path) -> list[Path]:
    """Write every image as a PNG below `folder`/images, and the first ones as `folder`/grid.png.

    The grid has a row for every class, or is close to square.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    kept: list[Tensor] = []
    for wanted, image in images:
        pixels = to_pixels(image).permute(1, 2, 0)
        written.append(_write(folder / "images" / f"{wanted.name}.png", pixels))
        if len(kept) < plan.grid_images:
            kept.append(pixels)
    columns = len(plan.seeds) if plan.classes is not None else math.ceil(math.sqrt(len(kept)))
    return [_write(folder / "grid.png", contact_sheet(kept, min(columns, len(kept)))), *written]


def contact_sheet(images: Sequence[Tensor], columns: int) -> Tensor:
    """Images side by side on white, each pixel of a small one a square of pixels. Shapes: (height, width, channels)."""
    height, width, channels = images[0].shape
    scale = math.ceil(CELL / min(height, width))
    height, width, rows = height * scale, width * scale, -(-len(images) // columns)
    sheet = torch.full((rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, channels), 255, dtype=torch.uint8)
    for i, image in enumerate(images):
        y, x = GAP + i // columns * (height + GAP), GAP + i % columns * (width + GAP)
        sheet[y : y + height, x : x + width] = image.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    return sheet


def _chosen(batch: Sequence[Wanted], drawn: Any, teacher: Teacher) -> Any:
    """The conditions of a batch: the drawn ones, or the labels of the plan in their place."""
    labels = [image.label for image in batch if image.label is not None]
    if not labels:
        return drawn
    leaf = drawn["cond"] if isinstance(drawn, dict) and "cond" in drawn else drawn
    if not isinstance(leaf, Tensor) or leaf.is_floating_point() or leaf.ndim != 1:
        raise ValueError(f"{teacher.name} takes no class or prompt numbers; leave classes out")
    count = teacher.num_classes
    if count and not all(0 <= label < count for label in labels):
        raise ValueError(f"classes of {teacher.name} are 0 to {count - 1}, not {sorted(set(labels))}")
    chosen = torch.tensor(labels, dtype=leaf.dtype)
    return {**drawn, "cond": chosen} if isinstance(drawn, dict) else chosen


def _write(path: Path, pixels: Tensor) -> Path:
    """Write a PNG under a temporary name beside `path`, then move it into place."""
    from PIL import Image

    temporary = path.with_name(f".{path.name}.part")
    Image.fromarray(pixels.squeeze(-1).numpy()).save(temporary, format="PNG")
    os.replace(temporary, path)
    return path
