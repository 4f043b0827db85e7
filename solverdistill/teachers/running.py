"""How a frozen network is run: dtype, memory format, compilation and attention kernels; never what it computes.

A teacher converts to the denoised estimate outside of the network, in float32 or better; only the network itself runs
under autocast.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack
from torch.nn.attention import SDPBackend, sdpa_kernel

from solverdistill.support.type_checks import check_fields

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ATTENTION = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}


@dataclass(frozen=True)
class Running:
    """Switches of a network's execution.

    Args:
        dtype: "float32" runs the network in the dtype of its weights and inputs; "bfloat16" and "float16" under
            autocast.
        channels_last: Keep image tensors in channels-last memory format.
        compile: Compile the network with `torch.compile`; forward-mode fits then differentiate the original.
        attention: Kernel of `scaled_dot_product_attention`: "math", "flash", "efficient" or "cudnn"; None leaves the
            choice to torch.
    """

    dtype: str = "float32"
    channels_last: bool = False
    compile: bool = False
    attention: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.dtype not in DTYPES:
            raise ValueError(f"running.dtype {self.dtype!r} is unknown; known: {', '.join(DTYPES)}")
        if self.attention is not None and self.attention not in ATTENTION:
            raise ValueError(f"running.attention {self.attention!r} is unknown; known: {', '.join(ATTENTION)} or null")

    @staticmethod
    def of(value: Running | Mapping[str, Any] | None) -> Running:
        """The switches that a configuration states, the defaults for those that it leaves out.

        Raises:
            ValueError: a switch is unknown.
        """
        if isinstance(value, Running):
            return value
        try:
            return Running(**dict(value or {}))
        except TypeError as error:
            raise ValueError(f"running cannot be used: {error}") from None


class FrozenNetwork(nn.Module):
    """A network in evaluation mode without parameter gradients, run as its switches say.

    Its tensors are those of the network, so that no switch changes a fingerprint.

    Args:
        network: Any module.
        running: Its switches.
    """

    def __init__(self, network: nn.Module, running: Running | Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.running = Running.of(running)
        memory = torch.channels_last if self.running.channels_last else torch.preserve_format
        self.network = network.eval().requires_grad_(False).to(memory_format=memory)
        # Outside the module tree: a compiled network shares every tensor with the original.
        vars(self)["_compiled"] = torch.compile(self.network) if self.running.compile else None

    def train(self, mode: bool = True) -> FrozenNetwork:
        """Stay in evaluation mode, whatever a trainer asks for."""
        return super().train(False)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Run the network; arguments and results are its own."""
        running, run = self.running, self._runner()
        if running.channels_last:
            inputs = tuple(_channels_last(value) for value in inputs)
        with ExitStack() as stack:
            if running.dtype != "float32":
                device = next((v.device.type for v in inputs if isinstance(v, Tensor)), "cpu")
                stack.enter_context(torch.autocast(device, DTYPES[running.dtype]))
            if running.attention is not None:
                stack.enter_context(sdpa_kernel(ATTENTION[running.attention]))
            return run(*inputs, **options)

    def _runner(self) -> Any:
        """The compiled network, or the original where a function transform differentiates it forwards."""
        compiled = vars(self)["_compiled"]
        transformed = peek_interpreter_stack() is not None
        return self.network if compiled is None or transformed else compiled


def _channels_last(value: Any) -> Any:
    is_image = isinstance(value, Tensor) and value.ndim == 4
    return value.contiguous(memory_format=torch.channels_last) if is_image else value
