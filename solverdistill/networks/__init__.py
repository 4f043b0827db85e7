"""Denoising networks and the small classifier used to measure samples.

A *network* here is a plain ``torch.nn.Module`` F(x, noise label, class labels); :class:`Preconditioned` turns it into
a denoiser D(x, sigma) in EDM coordinates ``x = x0 + sigma n``, the only interface the rest of the package relies on.
"""

from __future__ import annotations

from solverdistill.networks.classifier import DigitClassifier
from solverdistill.networks.dit import DiT
from solverdistill.networks.guided_unet import GuidedUNet
from solverdistill.networks.preconditioning import Preconditioned
from solverdistill.networks.song_unet import SongUNet

__all__ = ["DiT", "DigitClassifier", "GuidedUNet", "Preconditioned", "SongUNet"]
