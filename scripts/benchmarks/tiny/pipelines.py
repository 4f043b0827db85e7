"""`TINY`: pipelines of diffusers with tiny random components, by name.

    made = TINY["WanPipeline"]()
    latents = made.run(4)                                   # its own scheduler, four steps
    made.pipe(**made.arguments, num_inference_steps=4)      # the same without the seed

The name is that of the class, with what is special after a comma where a class is there twice.
"""

from __future__ import annotations

from collections.abc import Callable

from .diffusion import DIFFUSION
from .diffusion_videos import DIFFUSION_VIDEOS
from .images import IMAGES
from .ltx import LTXS
from .making import Tiny
from .more_images import MORE_IMAGES
from .packed_images import PACKED_IMAGES
from .videos import VIDEOS
from .wan import WANS

ALL = {**PACKED_IMAGES, **IMAGES, **MORE_IMAGES, **VIDEOS, **WANS, **LTXS, **DIFFUSION, **DIFFUSION_VIDEOS}
TINY: dict[str, Callable[[], Tiny]] = dict(sorted(ALL.items()))
