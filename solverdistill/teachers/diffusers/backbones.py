"""diffusers' networks behind one call: backbone(z, time, rows) -> prediction.

`z` is in the network's own scale, `time` what it is told (fractional timestep, or flow time in 0..1), and `rows` are
named conditions, samples first. Channels past those of `z` (a learned variance) are dropped. A network whose weights
are half precision is given float32 and runs under autocast; results come as it makes them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from solverdistill.teachers.running import FrozenNetwork, Running

Rows = dict[str, Tensor]


class Backbone(nn.Module, ABC):
    """A frozen diffusers network.

    Args:
        network: The network.
        running: How it is run; weights of half precision run in their own dtype.
        channels: Channels of a sample.
    """

    def __init__(self, network: Any, running: Running, channels: int) -> None:
        super().__init__()
        dtype = next(network.parameters()).dtype
        names = {torch.bfloat16: "bfloat16", torch.float16: "float16"}
        if dtype in names and running.dtype != names[dtype]:
            raise ValueError(f"weights in {names[dtype]} need model.running.dtype={names[dtype]}, not {running.dtype}")
        self.net, self.channels = FrozenNetwork(network, running), channels
        self.network_name, self.config = type(network).__name__, network.config

    @property
    def dtype(self) -> torch.dtype:
        """What inputs are given in: the weights' dtype, float32 at least."""
        return torch.promote_types(next(self.net.network.parameters()).dtype, torch.float32)

    def forward(self, z: Tensor, time: Tensor, rows: Rows) -> Tensor:
        rows = {name: v.to(self.dtype) if v.is_floating_point() else v for name, v in rows.items()}
        return self.run(z.to(self.dtype), time.to(self.dtype), rows)[:, : self.channels]

    def facts(self) -> dict[str, Any]:
        """What else the network is told, JSON-able."""
        return {}

    @abstractmethod
    def run(self, z: Tensor, time: Tensor, rows: Rows) -> Tensor:
        """Call the network with its own arguments."""


class UnconditionalUNet(Backbone):
    """UNet2DModel, as of DDPM on pixels."""

    def run(self, z: Tensor, time: Tensor, rows: Rows) -> Tensor:
        return self.net(z, time, return_dict=False)[0]


class TextUNet(Backbone):
    """UNet2DConditionModel of Stable Diffusion 1.x and 2.x."""

    def run(self, z: Tensor, time: Tensor, rows: Rows) -> Tensor:
        return self.net(z, time, rows["embeds"], added_cond_kwargs=self.added(z, rows), return_dict=False)[0]

    def added(self, z: Tensor, rows: Rows) -> dict[str, Tensor] | None:
        """Further conditions of the network."""
        return None


class TextUNetXL(TextUNet):
    """UNet2DConditionModel of SDXL: also told pooled embeddings and sizes.

    Args:
        network, running, channels: As of every backbone.
        size: Height and width of the image in pixels, told as the original and the target size, uncropped.
    """

    def __init__(self, network: Any, running: Running, channels: int, size: tuple[int, int]) -> None:
        super().__init__(network, running, channels)
        self.size = size

    def facts(self) -> dict[str, Any]:
        return {"size": list(self.size)}

    def added(self, z: Tensor, rows: Rows) -> dict[str, Tensor]:
        time_ids = z.new_tensor([*self.size, 0, 0, *self.size]).expand(len(z), 6)
        return {"text_embeds": rows["pooled"], "time_ids": time_ids}


class DiT(Backbone):
    """DiTTransformer2DModel."""

    def run(self, z: Tensor, time: Tensor, rows: Rows) -> Tensor:
        return self.net(z, time, rows["label"], return_dict=False)[0]


class PixArt(Backbone):
    """PixArtTransformer2DModel; the large one is told the image's size and aspect.

    Args:
        network, running, channels: As of every backbone.
        size: Height and width of the image in pixels.
    """

    def __init__(self, network: Any, running: Running, channels: int, size: tuple[int, int]) -> None:
        super().__init__(network, running, channels)
        self.size, self.told_size = size, bool(network.use_additional_conditions)

    def facts(self) -> dict[str, Any]:
        return {"size": list(self.size)} if self.told_size else {}

    def run(self, z: Tensor, time: Tensor, rows: Rows) -> Tensor:
        told: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if self.told_size:
            height, width = self.size
            told["resolution"] = z.new_tensor([height, width]).expand(len(z), 2)
            told["aspect_ratio"] = z.new_tensor([height / width]).expand(len(z), 1)
        options = {"added_cond_kwargs": told, "encoder_attention_mask": rows["mask"], "return_dict": False}
        return self.net(z, rows["embeds"], time, **options)[0]


class SD3(Backbone):
    """SD3Transformer2DModel, told 1000 t."""

    def run(self, z: Tensor, time: Tensor, rows: Rows) -> Tensor:
        return self.net(z, rows["embeds"], rows["pooled"], 1000 * time, return_dict=False)[0]


class Flux(Backbone):
    """FluxTransformer2DModel on packed latents: every 2x2 block of pixels is a token.

    The network itself rounds its time to the dtype it computes in: in bfloat16 to 8 binary digits, which is steps of 4
    thousandths where t is above a half. What is trained under bfloat16 is what a bfloat16 pipeline runs.

    Args:
        network, running, channels: As of every backbone; `channels` are those of the unpacked latents.
        guidance: Scale told to a guidance-distilled network; ignored by others.
    """

    def __init__(self, network: Any, running: Running, channels: int, guidance: float) -> None:
        super().__init__(network, running, channels)
        self.guidance = guidance if network.config.guidance_embeds else None

    def facts(self) -> dict[str, Any]:
        return {} if self.guidance is None else {"guidance_embedding": self.guidance}

    def run(self, z: Tensor, time: Tensor, rows: Rows) -> Tensor:
        batch, channels, height, width = z.shape
        grid = torch.meshgrid(torch.arange(height // 2), torch.arange(width // 2), indexing="ij")
        image_ids = torch.stack([torch.zeros_like(grid[0]), *grid], dim=-1).flatten(0, 1).to(z)
        out = self.net(
            z.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2),
            rows["embeds"],
            rows["pooled"],
            time,
            image_ids,
            z.new_zeros(rows["embeds"].shape[1], 3),
            None if self.guidance is None else z.new_full((batch,), self.guidance),
            return_dict=False,
        )[0]
        blocks = out.unflatten(2, (channels, 2, 2)).unflatten(1, (height // 2, width // 2))
        return blocks.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
