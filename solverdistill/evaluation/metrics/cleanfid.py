"""clean-fid's own resizing, Inception network and distances, fed batch by batch.

clean-fid turns every image into 8-bit pixels, resizes it to 299 x 299 with an anti-aliased bicubic filter without
rounding, and takes the 2048 features of the Inception network that FID is defined by. Its command-line functions read
folders and keep the features of all images; here its parts are called on batches instead.
Reference: Parmar, Zhang, Zhu, "On Aliased Resizing and Surprising Subtleties in GAN Evaluation", CVPR 2022.
"""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from solverdistill.evaluation.pixels import to_pixels

INCEPTION = "inception-2015-12-05.pt"
URL = f"https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/{INCEPTION}"
SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"


def load_cleanfid() -> Any:
    """The module `cleanfid.fid`.

    Raises:
        ImportError: clean-fid, or the torchvision that it needs, is not there or does not work.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the libraries that it imports
            from cleanfid import fid
    except (ImportError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ImportError(
            f"clean-fid cannot be imported ({reason}); install clean-fid and a torchvision that belongs to this torch, "
            "or choose backend=torchmetrics"
        ) from None
    return fid


def inception_file() -> Path:
    """Where the Inception network lies: torch's hub folder, or the system's temporary folder, clean-fid's own place.

    Raises:
        FileNotFoundError: it lies in neither; the message says from where and where to put it.
        ValueError: the file is not the network that FID is defined by.
    """
    hub = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION
    for path in (hub, Path(tempfile.gettempdir()) / INCEPTION):
        if path.is_file():
            found = hashlib.sha256(path.read_bytes()).hexdigest()
            if found != SHA256:
                raise ValueError(f"{path} has SHA-256 {found[:16]}..., not {SHA256[:16]}...: download {URL} again")
            return path
    raise FileNotFoundError(f"FID needs {INCEPTION} (96 MB): download {URL} and put it at {hub}")


class CleanInception(nn.Module):
    """clean-fid's Inception network on images in [-1, 1]; what is measured on it is FID and KID.

    Raises:
        FileNotFoundError: the network's file is missing.
    """

    num_features, name = 2048, "clean-fid Inception"

    def __init__(self) -> None:
        super().__init__()
        path = inception_file()
        load_cleanfid()
        from cleanfid.inception_torchscript import InceptionV3W
        from cleanfid.resize import build_resizer

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of torch.jit.load, which clean-fid calls
            network = InceptionV3W(str(path.parent), download=False, resize_inside=False)
        self.network = network.eval().requires_grad_(False)
        self._resize = build_resizer("clean")

    def forward(self, x: Tensor) -> Tensor:
        """Features. Shape: (batch, 2048)."""
        pixels = to_pixels(x).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # clean-fid's way to call Pillow
            resized = torch.stack([torch.from_numpy(self._resize(image)) for image in pixels])
        device = next((value.device for value in self.network.buffers()), torch.device("cpu"))
        return self.network(resized.permute(0, 3, 1, 2).to(device))
