"""AMED predictors: a small network that gives each image its own coefficients, read as their mean.

The network reads 64 bottleneck features of the denoiser and the two noise levels of a step. With c the 8 numbers
sin(sigma f), cos(sigma f), f = 10000^(-j/3), j = 0..3::

    z = [enc_layer1(silu(enc_layer0(features))), silu(map_layer0(c(sigma))), silu(map_layer0(c(sigma')))]
    r = sigmoid(fc_r z),    scales = 1 - s + 2 s sigmoid(fc_scale z)      with the file's ranges s

A solver file has one set of coefficients for all images, so they are averaged over the samples of `features`, or taken
at zero features, as at an analytical first step, where none are given. AMED-Solver then is EPD with one point. Its
plug-ins (`amed_plugins`) are tables that no family of the roster has: they play but cannot be trained.

Reference: Zhou et al., "Fast ODE-based Sampling for Diffusion Models in Around 5 Steps", CVPR 2024.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from solverdistill import families
from solverdistill.families.base import Params
from solverdistill.importers.amed_plugins import Coefficients, MultistepPlugin, Plugin
from solverdistill.importers.imported import Imported, Settings, Source, make_imported
from solverdistill.importers.levels import published_levels
from solverdistill.importers.predictor_files import Predictor
from solverdistill.noise.paths import EDM
from solverdistill.support.facts import Facts
from solverdistill.support.limits import shown

SOURCE = Source("amed", "zju-pi/diff-sampler", "Zhou et al., CVPR 2024, arXiv 2312.00094")
FEATURES = 64
PLUGINS = ("euler", "dpm", "ipndm", "dpmpp")
NOT_THRESHOLDED = "the published sampler thresholds denoised images, which no table can; this one does not"


def import_amed(path: str | os.PathLike[str], predictor: Predictor, settings: Settings) -> Imported:
    """Read an `AMED_predictor` with the mean of its coefficients."""
    facts = predictor.facts
    told = facts.values.get("dataset_name")
    model = settings.find_model(told if isinstance(told, str) else None, facts.place)
    count, student = facts.count("num_steps", 2), facts.word("sampler_stu")
    kind, rho = facts.word("schedule_type", model.grid), facts.number("schedule_rho", 7.0)
    grid = list(settings.grid or published_levels(kind, count, model, rho))
    if len(grid) != count:
        raise ValueError(f"file {path} is for {count} noise levels, but grid has {len(grid)}")
    mean = mean_coefficients(predictor, grid, settings.features)
    afs = facts.flag("afs")
    remarks = [
        "mean coefficients of AMED, whose own ones differ from image to image; "
        + ("at zero features" if settings.features is None else "over the given features")
    ]
    if student == "amed":
        ranges = {name: _reach(facts, name) for name in ("scale_dir", "scale_time")}
        family = families.build("epd", grid, "edm", points=1, afs=afs, **ranges)
        return make_imported(path, SOURCE, model, family, _epd_params(mean, ranges), remarks, facts.guidance)
    if student not in PLUGINS:
        known = ", ".join(("amed", *PLUGINS))
        raise ValueError(f"file {path} holds AMED on {shown(student)}, which has no table here; known: {known}")
    plugin = _plugin(facts, student, tuple(grid), afs, mean)
    if isinstance(plugin, MultistepPlugin) and plugin.predict_x0:
        remarks.append(NOT_THRESHOLDED)
    remarks.append(f"AMED on {student} is no family of the roster: it plays but cannot be trained further")
    return make_imported(path, SOURCE, model, plugin.program({}), None, remarks, facts.guidance)


def _plugin(
    facts: Facts, student: str, grid: tuple[float, ...], afs: bool, mean: Coefficients
) -> Plugin | MultistepPlugin:
    if student != "dpmpp":
        order = facts.integer("max_order", 4) if student == "ipndm" else 1
        if not 1 <= order <= 4:
            raise ValueError(f"file {facts.file} has max_order {order}, which is not 1 to 4")
        return Plugin(grid=grid, path=EDM(), afs=afs, student=student, coefficients=mean, max_order=order)
    order = facts.integer("max_order", 3)
    if not 1 <= order <= 3:
        raise ValueError(f"file {facts.file} has max_order {order}, which is not 1 to 3")
    switches = {name: facts.flag(name, True) for name in ("predict_x0", "lower_order_final")}
    return MultistepPlugin(grid=grid, path=EDM(), afs=afs, coefficients=mean, max_order=order, **switches)


def mean_coefficients(predictor: Predictor, grid: list[float], features: Tensor | None) -> Coefficients:
    """Run the predictor on every step and average over samples.

    Args:
        predictor: The network's tensors and ranges.
        grid: Noise levels. Length: steps + 1.
        features: Bottleneck features of shape (steps, 64) or (steps, samples, 64); None for zeros.
    """
    steps = len(grid) - 1
    features = torch.zeros(steps, FEATURES, dtype=torch.float64) if features is None else features.double()
    if features.ndim not in (2, 3) or features.shape[0] != steps or features.shape[-1] != FEATURES:
        raise ValueError(f"features have shape {tuple(features.shape)}, expected ({steps}, samples, {FEATURES})")
    features = features.reshape(steps, -1, FEATURES)
    hidden = _layer(predictor, "enc_layer1", silu(_layer(predictor, "enc_layer0", features, 128, FEATURES)), 4, 128)
    codes = silu(_layer(predictor, "map_layer0", _codes(grid), 8, 8))
    samples = features.shape[1]
    here, there = (codes[a : a + steps, None].expand(-1, samples, -1) for a in (0, 1))
    z = torch.cat([hidden, here, there], dim=-1)
    r = torch.sigmoid(_layer(predictor, "fc_r", z, 1, 20)[..., 0]).mean(1)
    scales = []
    for name in ("scale_dir", "scale_time"):
        reach = _reach(predictor.facts, name)
        if reach:
            raw = _layer(predictor, f"fc_{name}", z, 1, 20)[..., 0]
            scales.append((1 - reach + 2 * reach * torch.sigmoid(raw)).mean(1))
        else:
            scales.append(torch.ones_like(r))
    return Coefficients(r, *scales)


def _reach(facts: Facts, name: str) -> float:
    return facts.number(name, 0.0)


def _layer(predictor: Predictor, name: str, x: Tensor, outputs: int, inputs: int) -> Tensor:
    weight = predictor.tensor(f"{name}.weight", outputs, inputs)
    return linear(x, weight, predictor.tensor(f"{name}.bias", outputs))


def _codes(grid: list[float]) -> Tensor:
    """Codes of noise levels, whose frequencies are published in single precision. Shape: (levels, 8).

    Powers are taken in double precision and rounded: those of single precision differ between kinds of CPU.
    """
    exponents = torch.arange(4, dtype=torch.float32) / 3
    frequencies = torch.pow(torch.tensor(1 / 10000).double(), exponents.double()).float().double()
    angles = torch.tensor(grid, dtype=torch.float64)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _epd_params(mean: Coefficients, ranges: dict[str, float]) -> Params:
    """Raw values of EPD with one point that give these coefficients."""
    params = {"r_params": torch.logit(mean.r)[:, None], "weight_s": torch.zeros(len(mean.r), 1, dtype=torch.float64)}
    for name, scale in (("scale_dir", mean.scale_dir), ("scale_time", mean.scale_time)):
        reach = ranges[name]
        raw = 2 * torch.logit((scale - 1 + reach) / (2 * reach)) if reach else torch.zeros_like(scale)
        params[f"{name}_params"] = raw[:, None]
    return params
