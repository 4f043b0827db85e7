"""The models that published solvers were fitted to: what their files leave out and a solver file has to say.

Noise levels are in EDM units, sigma / alpha, but for flow models, whose own time is used. The ranges are those between
which the authors sample.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from solverdistill.noise.paths import make_path

LDM_BETAS = {"name": "discrete", "beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195}
STABLE_BETAS = {"name": "discrete"}
LINEAR_BETAS = {"name": "discrete", "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}


@dataclass(frozen=True)
class Model:
    """A frozen network that a published solver belongs to.

    Args:
        title: Its name in full.
        prediction: What the network predicts: "denoised", "eps", "v" or "flow".
        path: Its own noise path.
        start: Largest noise level.
        end: Smallest noise level.
        grid: Kind of grid that solvers of it are published with, where a file does not say.
        shift: Time shift of a flow model, or None.
        mu: Logarithm of the time shift where it depends on the resolution, or None.
        t_eps: Last time of the GAS solvers, or None.
    """

    title: str
    prediction: str = "denoised"
    path: dict[str, Any] = field(default_factory=lambda: {"name": "edm"})
    start: float = 80.0
    end: float = 0.002
    grid: str = "polynomial"
    shift: float | None = None
    mu: float | None = None
    t_eps: float | None = None

    @property
    def flow(self) -> bool:
        """Whether noise levels are flow times."""
        return self.path["name"] == "flow"

    def description(self) -> dict[str, Any]:
        """What a solver file says about its teacher; the network itself was never seen."""
        path = make_path(self.path)
        return {
            "name": self.title,
            "fingerprint": "unknown",
            "prediction": self.prediction,
            "path": path.hyperparameters(),
            "noise_range": [round(float(path.from_clock(level)), 6) for level in (self.start, self.end)],
        }


def _latent(title: str, betas: dict[str, Any], start: float, end: float) -> Model:
    return Model(title, "eps", betas, start, end, "discrete", t_eps=1e-3)


def _flow(title: str, **options: Any) -> Model:
    return Model(title, "flow", {"name": "flow"}, 1.0, 0.0, "flowmatch", **options)


MODELS: dict[str, Model] = {
    "cifar10": Model("edm-cifar10-32x32-uncond-vp", t_eps=1e-3),
    "ffhq": Model("edm-ffhq-64x64-uncond-vp", t_eps=1e-4),
    "afhqv2": Model("edm-afhqv2-64x64-uncond-vp", t_eps=1e-4),
    "imagenet64": Model("edm-imagenet-64x64-cond-adm"),
    "lsun_bedroom": Model("edm_bedroom256_ema"),
    "lsun_bedroom_ldm": _latent("lsun_bedrooms-vq-f4 (LDM)", LDM_BETAS, 83.82249447, 0.038758913556),
    "imagenet256_ldm": _latent("cin256-v2-vq-f4 (LDM)", LDM_BETAS, 83.82249447, 0.038758913556),
    "sd15": _latent("stable-diffusion-v1-5", STABLE_BETAS, 14.61464123, 0.029167158152),
    "sdxl": _latent("stable-diffusion-xl-base-1.0", STABLE_BETAS, 14.61464123, 0.029167158152),
    "svd": Model("stable-video-diffusion", "v", start=700.0),
    "flux": _flow("black-forest-labs/FLUX.1-dev", mu=1.15),
    "sd3": _flow("stabilityai/stable-diffusion-3-medium", shift=3.0),
    "wan": _flow("Wan2.1", shift=8.0),
    "flowdcn": _flow("FlowDCN-B/2 256x256"),
    "sit": _flow("SiT-XL/2 256x256"),
    "dit": Model("DiT-XL/2 256x256", "eps", LINEAR_BETAS, 157.40727, 0.01),
}
ALIASES = {"cifar": "cifar10", "ms_coco": "sd15", "mscoco": "sd15", "dcn": "flowdcn", "mscoco5k": "flux"}


def find_model(name: str) -> Model:
    """Look a model up by its name or by a data set's name of the published code.

    Raises:
        ValueError: it is unknown; the message names all.
    """
    name = ALIASES.get(name, name)
    if name not in MODELS:
        raise ValueError(f"model {name!r} is unknown; known: {', '.join(MODELS)}")
    return MODELS[name]


def model_named_in(text: str) -> Model | None:
    """The model whose name a file's own name contains, or None; the longest name wins."""
    names = sorted((*MODELS, *ALIASES), key=len, reverse=True)
    found = (name for name in names if re.search(rf"(?<![a-z0-9]){name}(?![a-z0-9])", text.lower()))
    return next(map(find_model, found), None)
