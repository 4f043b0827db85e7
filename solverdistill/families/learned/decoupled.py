"""Decoupled noise levels: what becomes of a network output that was asked for at another level than the state's own.

A network of type p (eps, flow, v) gives ``denoised = k x - g p`` with k and g of the level it is told. Methods that
learn the told level apart from the state's own level keep p and change the conversion::

    denoised = k x - g p,      p = (k' x - D(x; told)) / g'

with k, g at the state's own level and k', g' at the told one. With equal levels it is D itself.

=======================  =================  ==================  =======================================
path                     p                  k                   g
=======================  =================  ==================  =======================================
edm, vp, discrete        eps                1 / alpha           sigma / alpha
flow                     flow (eps - x_0)   1                   sigma
cosine                   v                  alpha               sigma
=======================  =================  ==================  =======================================

On the last two nothing is divided by alpha, so pure noise (alpha = 0) is an ordinary level.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from solverdistill.families.base import Evaluator, State, Timeline
from solverdistill.noise.levels import Level
from solverdistill.noise.paths import Cosine, Flow, Path
from solverdistill.programs.tracing import told_level


@dataclass(frozen=True)
class Decoupled:
    """Evaluator that keeps the network's own output p at the told level and converts it with the state's own level.

    Args:
        denoise: Evaluator of the trace or of the eager run.
        path: Decides what p is; see the table of this module.
    """

    denoise: Evaluator
    path: Path

    def __call__(self, x: State, level: Level, told: Level | None = None) -> State:
        """Return the denoised image of `x`, whose own level is `level`, from the output at `told`."""
        denoised = self.denoise(x, level, told)
        if told is None:
            return denoised
        (k, g), (k_told, g_told) = self._conversion(level), self._conversion(told_level(level, told))
        ratio = g / g_told
        return x * (k - ratio * k_told) + denoised * ratio

    def _conversion(self, level: Level) -> tuple[Tensor, Tensor]:
        alpha, sigma = level
        if isinstance(self.path, Flow):
            return torch.ones_like(sigma), sigma
        if isinstance(self.path, Cosine):
            h = level.hypot()
            return alpha / h**2, sigma / h
        return 1 / alpha, sigma / alpha


class DecoupledTimeline(Timeline):
    """Timeline whose told levels keep the scale of the path, also for states in straight coordinates.

    The network is handed the path's state x as if it were at the told level. In straight coordinates that state is
    y = x / c, so the told pair is divided by the same c of the state's own level.
    """

    def straight_told(self, i: int) -> Level:
        alpha, sigma = self.told(i)
        return Level(alpha / self.scale[i], sigma / self.scale[i])
