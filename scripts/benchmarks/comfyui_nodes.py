"""A tiny random model inside a real ComfyUI, in the place of checkpoint, text encoder and VAE, for `comfyui.py`.

The model is one of ComfyUI's own: its BaseModel with one of its sampling types around a network of a few hundred random
numbers, so that everything between a graph and the network is ComfyUI's.
"""

from __future__ import annotations

import zlib
from typing import Any

import comfy.conds  # pyright: ignore[reportMissingImports]
import comfy.latent_formats  # pyright: ignore[reportMissingImports]
import comfy.model_base  # pyright: ignore[reportMissingImports]
import comfy.model_patcher  # pyright: ignore[reportMissingImports]
import comfy.supported_models_base  # pyright: ignore[reportMissingImports]
import torch
from torch import Tensor, nn

WIDTH = 8  # of a text embedding
FORMATS = {"eps": "SD15", "v": "SD15", "flow": "SD3"}
TYPES = {"eps": "EPS", "v": "V_PREDICTION", "flow": "FLOW"}
SETTINGS = {"eps": {}, "v": {}, "flow": {"shift": 3.0}}
KEPT: dict[str, Tensor] = {}  # latents that graphs ended with, by the name of their KeepLatent


class Network(nn.Module):
    """A convolution through tanh, with time and text added: smooth in all of its inputs."""

    dtype = torch.float32

    def __init__(self, channels: int, device: Any = None, operations: Any = None, **unused: Any) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.time, self.text = nn.Linear(2, channels), nn.Linear(WIDTH, channels)
        for parameter in self.parameters():
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)

    def forward(self, x: Tensor, timesteps: Tensor, context: Any = None, **unused: Any) -> Tensor:
        phase = 3 * timesteps / 1000
        offset = self.time(torch.stack([phase.sin(), phase.cos()], 1)) + self.text(context).mean(1)
        return torch.tanh(self.conv(x)) + offset[:, :, None, None] + 0.3 * x


def make_model(kind: str) -> Any:
    """A MODEL of a kind: "eps", "v" or "flow"."""
    latent_format = getattr(comfy.latent_formats, FORMATS[kind])
    settings: dict[str, Any] = {"latent_format": latent_format, "sampling_settings": SETTINGS[kind]}
    config = type("Tiny", (comfy.supported_models_base.BASE,), {**settings, "unet_extra_config": {}})
    made = config({"channels": latent_format().latent_channels})
    model_type = getattr(comfy.model_base.ModelType, TYPES[kind])
    model = TinyModel(made, model_type, device=torch.device("cpu"), unet_model=Network)
    return comfy.model_patcher.ModelPatcher(model.eval(), torch.device("cpu"), torch.device("cpu"))


class TinyModel(comfy.model_base.BaseModel):
    """BaseModel that gives the text to its network."""

    def extra_conds(self, **given: Any) -> dict[str, Any]:
        text = comfy.conds.CONDCrossAttn(given["cross_attn"])
        return {**super().extra_conds(**given), "c_crossattn": text}


def embed(text: str) -> Tensor:
    """A random embedding that belongs to a text. Shape: (1, 5, WIDTH)."""
    return torch.randn(1, 5, WIDTH, generator=torch.Generator().manual_seed(zlib.crc32(text.encode())))


def change_of(weight: Tensor) -> Tensor:
    """What `Lora` adds to a weight."""
    return 0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(9))


class Checkpoint:
    """CheckpointLoaderSimple; the name is one of `FORMATS`, any other is an eps model."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL", "CLIP", "VAE"), "load", "tiny"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"ckpt_name": ("STRING", {})}}

    def load(self, ckpt_name: str) -> tuple[Any, str, str]:
        return make_model(ckpt_name if ckpt_name in FORMATS else "eps"), "clip", "vae"


class Text:
    """CLIPTextEncode."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("CONDITIONING",), "encode", "tiny"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"text": ("STRING", {}), "clip": ("CLIP",)}}

    def encode(self, text: str, clip: Any) -> tuple[Any]:
        return ([[embed(text), {}]],)


class Lora:
    """A change of the weights as LoRA loaders make it, by patches of the MODEL."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "load", "tiny"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",), "strength": ("FLOAT", {"default": 1.0})}}

    def load(self, model: Any, strength: float) -> tuple[Any]:
        patched = model.clone()
        weight = patched.model.diffusion_model.conv.weight
        patched.add_patches({"diffusion_model.conv.weight": ("diff", (change_of(weight),))}, strength)
        return (patched,)


class Decode:
    """VAEDecode: three channels, eight times larger."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "decode", "tiny"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"samples": ("LATENT",), "vae": ("VAE",)}}

    def decode(self, samples: Any, vae: Any) -> tuple[Tensor]:
        image = nn.functional.interpolate(samples["samples"][:, :3].sigmoid(), scale_factor=8)
        return (image.movedim(1, -1),)


class Encode:
    """VAEEncode: the inverse of `Decode`, as far as there is one."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("LATENT",), "encode", "tiny"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"pixels": ("IMAGE",), "vae": ("VAE",)}}

    def encode(self, pixels: Tensor, vae: Any) -> tuple[Any]:
        small = nn.functional.avg_pool2d(pixels.movedim(-1, 1)[:, :3], 8)
        return ({"samples": torch.cat([small, small[:, :1]], 1).clamp(0.01, 0.99).logit()},)


class RandomLatent:
    """A latent that is not empty, with a noise mask over its right half where `masked` is above 0."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("LATENT",), "make", "tiny"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        sizes = {"channels": ("INT", {"default": 4}), "batch": ("INT", {"default": 2})}
        return {"required": {**sizes, "masked": ("FLOAT", {"default": 0.0})}}

    def make(self, channels: int, batch: int, masked: float) -> tuple[Any]:
        picture = 5 * torch.randn(batch, channels, 8, 8, generator=torch.Generator().manual_seed(3))
        latent: dict[str, Any] = {"samples": picture}
        if masked > 0:
            latent["noise_mask"] = masked * (torch.arange(8) > 3).float().view(1, 1, 1, 8).expand(batch, 1, 8, 8)
        return (latent,)


class KeepLatent:
    """Ends a graph; the latents are found in `KEPT`."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "keep", "tiny", True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"samples": ("LATENT",), "name": ("STRING", {})}}

    def keep(self, samples: Any, name: str) -> tuple[()]:
        KEPT[name] = samples["samples"].clone()
        return ()


CLASSES: dict[str, type] = {
    "CheckpointLoaderSimple": Checkpoint,
    "CLIPTextEncode": Text,
    "VAEDecode": Decode,
    "VAEEncode": Encode,
    "TinyLora": Lora,
    "RandomLatent": RandomLatent,
    "KeepLatent": KeepLatent,
}
