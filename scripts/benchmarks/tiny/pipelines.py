"""`TINY`: pipelines of diffusers with tiny random components, by name.

    made = TINY["WanPipeline"]()
    latents = made.run(4)                                   # its own scheduler, four steps
    made.pipe(**made.arguments, num_inference_steps=4)      # the same without the seed

The name is that of the class, with what is special after a comma where a class is there twice.
"""

from __future__ import annotations

from collections.abc import Callable

from .diffusion import DIFFUSION
from .images import IMAGES
from .making import Tiny
from .more_images import MORE_IMAGES
from .videos import VIDEOS

TINY: dict[str, Callable[[], Tiny]] = dict(sorted({**IMAGES, **MORE_IMAGES, **VIDEOS, **DIFFUSION}.items()))
