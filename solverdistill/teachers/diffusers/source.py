"""A pipeline's folder, and what a teacher needs of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from solverdistill.support.facts import Facts
from solverdistill.support.limits import shown
from solverdistill.support.type_checks import check_fields
from solverdistill.teachers.diffusers.folder import load_network, part_folder, pipeline_folder, read_json
from solverdistill.teachers.diffusers.prompts import PromptTable, embed_prompts, read_prompts
from solverdistill.teachers.diffusers.schedule import Schedule, make_schedule
from solverdistill.teachers.diffusers.vae import Decoder

MAX_BLOCKS = 16  # of a decoder, each of which doubles the size
Size = int | Sequence[int] | None


@dataclass(frozen=True)
class Source:
    """A pipeline's folder and how its network is wanted.

    Args:
        weights: Folder or hub id.
        parts: Subfolders that are needed.
        network: Names under which the network's subfolder may go.
        classes: Classes that the network may have.
        weights_dtype: dtype of the weights.
        variant: Variant of the weight files.
        latent_size: Height and width of samples; None for the network's own.
    """

    weights: str
    parts: tuple[str, ...]
    network: str
    classes: tuple[str, ...]
    weights_dtype: str = "float32"
    variant: str | None = None
    latent_size: Size = None

    def __post_init__(self) -> None:
        check_fields(self)

    @cached_property
    def folder(self) -> Path:
        """Where the pipeline lies on this machine."""
        return pipeline_folder(self.weights, self.parts, self.variant)

    @cached_property
    def model(self) -> Any:
        """The network."""
        return load_network(part_folder(self.folder, self.network), self.classes, self.weights_dtype, self.variant)

    def schedule(self, prediction: str | None = None, tokens: int | None = None) -> Schedule:
        """Its noise schedule."""
        where = self.folder / "scheduler"
        config = read_json(where if where.is_dir() else self.folder, "scheduler_config.json")
        return make_schedule(config, prediction, tokens)

    def size(self, default: Any, multiple: int) -> tuple[int, int]:
        """Height and width of a sample; both are multiples of a number of pixels.

        Raises:
            ValueError: they are not.
        """
        wanted = default if self.latent_size is None else self.latent_size
        pair = (wanted, wanted) if isinstance(wanted, int) else wanted
        pair = tuple(pair) if isinstance(pair, Sequence) else ()
        if len(pair) != 2 or any(type(v) is not int or v < 1 or v % multiple for v in pair):
            raise ValueError(
                f"model.latent_size={shown(wanted)} must be an integer or [height, width], multiples of {multiple}"
            )
        return pair[0], pair[1]

    @cached_property
    def pixels(self) -> int:
        """Image pixels along one latent pixel."""
        if not (self.folder / "vae" / "config.json").is_file():
            return 8
        facts = Facts(str(self.folder / "vae" / "config.json"), read_json(self.folder / "vae", "config.json"))
        return 2 ** (len(facts.numbers("block_out_channels", [0.0] * 4)[:MAX_BLOCKS]) - 1)

    def decoder(self, tile: int | None) -> Decoder:
        """The VAE, loaded when it is first used."""
        kinds = ("AutoencoderKL", "AutoencoderTiny")
        load = partial(load_network, self.folder / "vae", kinds, variant=self.variant)
        return Decoder(load, tile, 8 if tile is None else tile // 4)

    def prompts(
        self, kind: str, prompts: str | Sequence[str] | None, negative: str, length: int | None = None
    ) -> PromptTable:
        """The embedded prompts."""
        texts = read_prompts(prompts)
        return embed_prompts(self.folder, kind, texts, negative, self.weights_dtype, self.variant, length)
