"""The ComfyUI node against a stub of how ComfyUI scales noise, wraps the model and calls a sampler."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from solverdistill import Grid, families, sample, save_solver
from solverdistill.teachers.mixture import toy_mixture

PACKAGE = Path(__file__).parents[2] / "integrations" / "comfyui"
SIGMA_MAX = 80.0


class Inpaint:
    """The model as a sampler sees it: it takes exactly these arguments and mixes in what the mask keeps."""

    def __init__(self, wrapped: Any, latent: Tensor, noise: Tensor) -> None:
        self.wrapped, self.latent, self.noise = wrapped, latent, noise

    def __call__(
        self, x: Tensor, sigma: Tensor, denoise_mask: Tensor | None, model_options: Any = None, seed: int | None = None
    ) -> Tensor:
        if denoise_mask is None:
            return self.wrapped(x, sigma, model_options, seed)
        column = sigma.view(-1, *[1] * (x.ndim - 1))
        x = x * denoise_mask + self.wrapped.scaled(self.latent, self.noise, column) * (1 - denoise_mask)
        return self.wrapped(x, sigma, model_options, seed) * denoise_mask + self.latent * (1 - denoise_mask)


class Guider:
    """A guided model: eps models in the scale alpha = 1, flow models in alpha + sigma = 1."""

    def __init__(self, flow: bool) -> None:
        self.flow, self.batches, self.seeds = flow, [], []

    def __call__(self, x: Tensor, sigma: Tensor, model_options: Any, seed: int | None) -> Tensor:
        self.batches.append(len(x))
        self.seeds.append(seed)
        assert sigma.shape == (len(x),) and model_options == {"transformer_options": {}}
        return toy_mixture()(x, 1 - sigma if self.flow else torch.ones_like(sigma), sigma)

    def scaled(self, latent: Tensor, noise: Tensor, sigma: Any) -> Tensor:
        return (1 - sigma) * latent + sigma * noise if self.flow else latent + sigma * noise


class KSampler:
    """ComfyUI's object around a sampler function."""

    def __init__(self, sampler_function: Any, extra_options: dict[str, Any] | None = None) -> None:
        self.sampler_function, self.extra_options = sampler_function, extra_options or {}

    def sample(
        self,
        guider: Guider,
        sigmas: Tensor,
        noise: Tensor,
        latent: Tensor,
        mask: Tensor | None = None,
        callback: Any = None,
    ) -> Tensor:
        extra = {"model_options": {"transformer_options": {}}, "seed": 7, "denoise_mask": mask}
        model = Inpaint(guider, latent, noise)
        first, last = float(sigmas[0]), float(sigmas[-1])
        whole = not guider.flow and (first > SIGMA_MAX or math.isclose(first, SIGMA_MAX, rel_tol=1e-5))
        x = noise * math.sqrt(1 + first**2) + latent if whole else guider.scaled(latent, noise, first)
        steps = len(sigmas) - 1
        told = None if callback is None else lambda d: callback(d["i"], d["denoised"], d["x"], steps)
        out = self.sampler_function(
            model, x, sigmas, extra_args=extra, callback=told, disable=True, **self.extra_options
        )
        return out / (1 - last) if guider.flow else out


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The node, loaded as ComfyUI loads a folder of custom_nodes."""
    comfy, samplers = ModuleType("comfy"), ModuleType("comfy.samplers")
    samplers.KSAMPLER = comfy.samplers = KSampler  # type: ignore[attr-defined]
    comfy.samplers = samplers  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "comfy", comfy)
    monkeypatch.setitem(sys.modules, "comfy.samplers", samplers)
    name = "custom_nodes_solverdistill"
    spec = importlib.util.spec_from_file_location(
        name, PACKAGE / "__init__.py", submodule_search_locations=[str(PACKAGE)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    assert module.NODE_CLASS_MAPPINGS.keys() == module.NODE_DISPLAY_NAME_MAPPINGS.keys() == {"LoadLearnedSolver"}
    yield module.NODE_CLASS_MAPPINGS["LoadLearnedSolver"]
    sys.modules.pop(f"{name}.nodes", None)


def make_file(folder: Path, path: str = "edm", **changes: Any) -> tuple[str, Any]:
    grids = {"edm": Grid(steps=3), "flow": Grid("flow_shift", steps=3, start=1.0, end=0.02, shift=3.0)}
    family = families.build("epd", grids[path], path, points=2)
    params = family.init(1)
    facts: dict[str, Any] = {"teacher": {"name": "toy"}, "guidance": 3.5, **changes}
    place = save_solver(folder / f"{path}.json", family.program(params), family.hyperparameters(), params, facts)
    return str(place), family.program(params)


def draw() -> Tensor:
    return torch.randn(3, 6, dtype=torch.float64)


@pytest.mark.parametrize("path", ["edm", "flow"])
@pytest.mark.parametrize("parallel", ["auto", "as one batch", "one after the other"])
def test_the_node_plays_the_file(node: Any, path: str, parallel: str, tmp_path: Path) -> None:
    file, program = make_file(tmp_path, path)
    sampler, sigmas, about = getattr(node(), node.FUNCTION)(file, "from file", parallel)
    assert about == f"epd: nfe {program.nfe}, depth {program.depth}, fitted to toy, guidance 3.5"
    assert sigmas.dtype == torch.float32 and sigmas.device.type == "cpu" and len(sigmas) == 4
    guider, noise, previews = Guider(path == "flow"), draw(), []
    out = sampler.sample(guider, sigmas, noise, torch.zeros_like(noise), callback=lambda *step: previews.append(step))
    level = program.level[-1]
    factor = float(level[0])  # ComfyUI gives images in the scale of the data
    scale = math.sqrt(1 + 80.0**2) / 80.0 if path == "edm" else 1.0
    expected = sample(program, toy_mixture(), noise * scale) / factor
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)
    assert guider.batches == ([3] * program.nfe if parallel == "one after the other" else [3, 6] * 3)
    assert set(guider.seeds) == {7} and [(i, total) for i, _, _, total in previews] == [(0, 3), (1, 3), (2, 3)]


def test_a_mask_keeps_what_it_covers(node: Any, tmp_path: Path) -> None:
    file, program = make_file(tmp_path)
    sampler, sigmas, _ = node().load(file, "from file", "auto")
    guider, latent = Guider(False), torch.full((3, 6), 0.5, dtype=torch.float64)
    mask = torch.ones(3, 6, dtype=torch.float64)
    mask[:, 4:] = 0
    out = sampler.sample(guider, sigmas, draw(), latent, mask)
    assert guider.batches == [3] * program.nfe
    assert (out[:, 4:] - 0.5).abs().max() < 0.05  # up to the noise of the last level
    assert (out[:, :4] - 0.5).abs().max() > 0.2


def test_foreign_sigmas_are_refused(node: Any, tmp_path: Path) -> None:
    file, _ = make_file(tmp_path)
    sampler, sigmas, _ = node().load(file, "from file", "auto")
    for foreign in (sigmas[1:], torch.linspace(14.6, 0, 21)):
        with pytest.raises(ValueError, match="from the SIGMAS output of the node that loads it"):
            sampler.sample(Guider(False), foreign, draw(), torch.zeros(3, 6))


def test_the_kind_of_model_can_be_chosen(node: Any, tmp_path: Path) -> None:
    file, _ = make_file(tmp_path)
    edm, flow = (node().load(file, model, "auto")[1] for model in ("eps or v", "flow"))
    torch.testing.assert_close(flow, edm / (1 + edm))
    told, _ = make_file(tmp_path, teacher={"prediction": "flow"})
    torch.testing.assert_close(node().load(told, "from file", "auto")[1], flow)


def test_the_declared_inputs_are_those_of_the_function(node: Any, tmp_path: Path) -> None:
    inputs = node.INPUT_TYPES()["required"]
    assert list(inputs) == ["file", "model", "parallel"] and inputs["file"][0] == "STRING"
    assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES) == 3 and node.RETURN_TYPES[:2] == ("SAMPLER", "SIGMAS")
    file, _ = make_file(tmp_path)
    assert all(
        len(node().load(file, model, batch)) == 3 for model in inputs["model"][0] for batch in inputs["parallel"][0]
    )


def test_a_file_is_checked_before_the_run_and_noticed_when_it_changes(node: Any, tmp_path: Path) -> None:
    file, _ = make_file(tmp_path)
    assert node.VALIDATE_INPUTS(file=file) is True and node.VALIDATE_INPUTS() is True
    assert "cannot be read" in node.VALIDATE_INPUTS(file=str(tmp_path / "none.json"))
    before = node.IS_CHANGED(file, "from file", "auto")
    assert node.IS_CHANGED(file, "from file", "auto") == before
    make_file(tmp_path, guidance=2.0)
    assert node.IS_CHANGED(file, "from file", "auto") != before


def test_the_node_needs_the_core_alone(tmp_path: Path) -> None:
    import subprocess

    heavy = ("lightning", "hydra", "diffusers", "torchvision", "matplotlib", "rich", "safetensors", "transformers")
    code = (
        "import sys, types; c, s = types.ModuleType('comfy'), types.ModuleType('comfy.samplers'); "
        "s.KSAMPLER = object; c.samplers = s; sys.modules.update({'comfy': c, 'comfy.samplers': s}); "
        f"sys.path.insert(0, {str(PACKAGE.parent)!r}); import comfyui; "
        f"print([m for m in {heavy!r} if m in sys.modules])"
    )
    root = str(PACKAGE.parents[1])
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert result.stdout.strip() == "[]"
