"""Checks integrations/comfyui inside a real ComfyUI, on a tiny random model and the CPU.

    python -m scripts.benchmarks.comfyui path/to/ComfyUI

runs in a Python that has ComfyUI's requirements and this package. Every check is a graph that
ComfyUI's own executor validates and runs, with ComfyUI's samplers, guiders and models (`comfyui_nodes`); models, input
and output folders are temporary. Prints one line a check, and fails if one is missed. docs/comfyui.md keeps the output.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import inspect
import json
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from solverdistill import Grid, families, load_solver, sample, save_solver
from solverdistill.programs.restarting import restarted

PACKAGE = Path(__file__).parents[2] / "integrations" / "comfyui"
GUIDANCE = 3.0
Graph = dict[str, dict[str, Any]]


class Comfy:
    """A ComfyUI that runs graphs in this process.

    Args:
        checkout: Its folder.
        base: Folder for models, input and output.
    """

    def __init__(self, checkout: Path, base: Path) -> None:
        sys.argv = ["main.py", "--cpu", "--preview-method", "latent2rgb", "--base-directory", str(base)]
        sys.path.insert(0, str(checkout))
        for folder in ("models/solvers", "input", "output", "temp", "user"):
            (base / folder).mkdir(parents=True, exist_ok=True)
        importlib.import_module("comfy.options").enable_args_parsing()
        self.execution: Any = importlib.import_module("execution")
        takes = inspect.signature(self.execution.PromptExecutor).parameters
        self.cache = {"cache_args": {"lru": 0, "ram": 0.0}} if "cache_args" in takes else {}
        self.nodes: Any = importlib.import_module("nodes")
        self.said: list[str] = []
        self.solvers = base / "models" / "solvers"
        asyncio.run(self.nodes.init_builtin_extra_nodes())
        self.tiny: Any = importlib.import_module("scripts.benchmarks.comfyui_nodes")
        self.nodes.NODE_CLASS_MAPPINGS.update(self.tiny.CLASSES)
        logging.getLogger().handlers[:] = [Listener(self.said)]  # failures come as exceptions

    def load_nodes(self, classic: bool) -> str:
        """Load integrations/comfyui as ComfyUI does, or as one without the current interface; which one it was."""
        for name in [name for name in sys.modules if name.startswith(str(PACKAGE))]:
            del sys.modules[name]
        hidden = sys.modules.get("comfy_api.latest")
        if classic:
            sys.modules["comfy_api.latest"] = ModuleType("comfy_api.latest")  # holds nothing, as in older ones
        try:
            loaded = asyncio.run(self.nodes.load_custom_node(str(PACKAGE)))
        finally:
            if classic and hidden is not None:
                sys.modules["comfy_api.latest"] = hidden
        if not loaded:
            raise SystemExit(f"{PACKAGE} did not load")
        made = self.nodes.NODE_CLASS_MAPPINGS["LoadLearnedSolver"]
        return "current" if hasattr(made, "GET_SCHEMA") else "classic"

    def run(self, graph: Graph) -> dict[str, Tensor]:
        """Validate and execute a graph; the latents that it kept.

        Raises:
            RuntimeError: it was refused, or a node failed; the message is ComfyUI's.
        """
        return asyncio.run(self._run(graph))

    async def _run(self, graph: Graph) -> dict[str, Tensor]:
        self.tiny.KEPT.clear()
        valid, error, outputs, problems = await self.execution.validate_prompt("check", graph, None)
        if not valid or problems:
            raise RuntimeError(f"{error} {problems}")
        executor = self.execution.PromptExecutor(Server(), **self.cache)
        await executor.execute_async(graph, "check", {}, outputs)
        if not executor.success:
            failures = [data for event, data in executor.status_messages if event == "execution_error"]
            raise RuntimeError(failures[0]["exception_message"])
        return dict(self.tiny.KEPT)


class Server:
    """What the executor tells its server; nobody listens."""

    client_id = last_node_id = None

    def send_sync(self, event: Any, data: Any, sid: Any = None) -> None:
        """Drop a message."""


class Listener(logging.Handler):
    """Keeps warnings."""

    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.said = said

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def solver(comfy: Comfy, kind: str, name: str, **facts: Any) -> Any:
    """Write a solver of random params of a kind of model into models/solvers; its program."""
    if kind == "flow":
        path, grid = "flow", Grid("flow_shift", steps=3, start=1.0, end=0.02, shift=3.0)
    else:
        path, grid = "edm", Grid("polynomial", steps=3, start=14.6, end=0.03)
    family = families.build(name, grid, path, **({"points": 2} if name == "epd" else {}))
    values = family.init(1)
    generator = torch.Generator().manual_seed(2)
    for key, value in values.items():
        values[key] = value + 0.02 * torch.randn(value.shape, dtype=value.dtype, generator=generator)
    teacher = {"name": "tiny", "prediction": kind}
    known = {"teacher": teacher, "guidance": GUIDANCE, **facts}
    save_solver(comfy.solvers / f"{kind}-{name}.json", family.program(values), family.hyperparameters(), values, known)
    return family.program(values).detach()


def graph_of(kind: str, file: str, latent: Graph | None = None, cfg: float = GUIDANCE, **loaded: Any) -> Graph:
    """Checkpoint, two prompts, a solver file, SamplerCustom."""
    empty: Graph = {"latent": node("EmptyLatentImage", width=64, height=64, batch_size=2)}
    return {
        **prompts(kind),
        "solver": node("LoadLearnedSolver", file=file, model="from file", parallel="auto", **loaded),
        **(latent or empty),
        **sampled(["solver", 0], ["solver", 1], cfg),
    }


def prompts(kind: str) -> Graph:
    """Checkpoint and two prompts."""
    return {
        "model": node("CheckpointLoaderSimple", ckpt_name=kind),
        "positive": node("CLIPTextEncode", text="a cat", clip=["model", 1]),
        "negative": node("CLIPTextEncode", text="", clip=["model", 1]),
    }


def sampled(sampler: list[Any], sigmas: list[Any], cfg: float, model: str = "model") -> Graph:
    """SamplerCustom, and what keeps its latents as "out"."""
    given = {"model": [model, 0], "positive": ["positive", 0], "negative": ["negative", 0]}
    settings = {"add_noise": True, "noise_seed": 5, "cfg": cfg}
    ends = {"sampler": sampler, "sigmas": sigmas, "latent_image": ["latent", 0]}
    return {
        "sample": node("SamplerCustom", **given, **settings, **ends),
        "keep": node("KeepLatent", samples=["sample", 0], name="out"),
    }


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    """A node of a graph."""
    return {"class_type": kind, "inputs": inputs}


def relative(found: Tensor, expected: Tensor) -> float:
    """Largest difference as a share of the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


def denoiser_of(comfy: Comfy, kind: str, cfg: float, lora: bool = False) -> Callable[..., Tensor]:
    """The guided MODEL without ComfyUI's samplers, guiders and patches: from the network's wrapper alone."""
    model = comfy.tiny.make_model(kind).model
    if lora:
        weight = model.diffusion_model.conv.weight
        weight.data = weight + comfy.tiny.change_of(weight)
    positive, negative = (comfy.tiny.embed(text) for text in ("a cat", ""))

    def denoise(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        scale = alpha + sigma if kind == "flow" else alpha
        state, told = x / scale.view(-1, 1, 1, 1), sigma / scale

        def of(text: Tensor) -> Tensor:
            return model.apply_model(state.float(), told.float(), c_crossattn=text.expand(len(x), -1, -1))

        with torch.no_grad():
            null = of(negative)
            return null + cfg * (of(positive) - null)

    return denoise


def noise_like(latent: Tensor, seed: int = 5) -> Tensor:
    """ComfyUI's noise of a seed."""
    return torch.randn(latent.shape, generator=torch.manual_seed(seed))


def check_playing(comfy: Comfy) -> Iterator[tuple[str, float, float]]:
    """A file gives what `sample` gives on the same network."""
    for kind in ("eps", "v", "flow"):
        for name in ("epd", "gas"):
            program = solver(comfy, kind, name)
            found = comfy.run(graph_of(kind, f"{kind}-{name}.json"))["out"]
            model = comfy.tiny.make_model(kind).model
            unit = noise_like(found)
            expected = sample(program, denoiser_of(comfy, kind, GUIDANCE), unit)
            alpha = float(program.level[-1, 0])
            yield f"play {kind} {name}", relative(found, model.process_latent_out(expected / alpha)), 1e-5


def check_masks(comfy: Comfy) -> Iterator[tuple[str, float, float]]:
    """What a noise mask keeps stays, whole and where it keeps a half; Euler is ComfyUI's own."""
    for kind in ("eps", "flow"):
        for name in ("epd", "gas", "bns"):
            solver(comfy, kind, name)
            latent = {"latent": node("RandomLatent", channels=16 if kind == "flow" else 4, batch=2, masked=1.0)}
            graph = graph_of(kind, f"{kind}-{name}.json", latent)
            graph["kept"] = node("KeepLatent", samples=["latent", 0], name="picture")
            found = comfy.run(graph)
            yield f"mask {kind} {name}", relative(found["out"][..., :4], found["picture"][..., :4]), 1e-6
            if float((found["out"] - found["picture"])[..., 4:].abs().max()) < 1e-2:
                raise SystemExit(f"{kind} {name}: the part to be made anew was kept too")
        graph["soft"] = node("DifferentialDiffusion", model=["model", 0])
        graph["sample"]["inputs"]["model"] = ["soft", 0]
        found = comfy.run(graph)
        yield f"mask {kind} bns, differential", relative(found["out"][..., :4], found["picture"][..., :4]), 1e-6
        graph = graph_of(kind, f"{kind}-epd.json", latent)
        graph["solver"] = node("KSamplerSelect", sampler_name="euler")
        graph["steps"] = node("BasicScheduler", model=["model", 0], scheduler="simple", steps=6, denoise=1.0)
        graph["sample"]["inputs"]["sigmas"] = ["steps", 0]
        graph["kept"] = node("KeepLatent", samples=["latent", 0], name="picture")
        found = comfy.run(graph)
        yield f"mask {kind} ComfyUI's euler", relative(found["out"][..., :4], found["picture"][..., :4]), 1e-6


def check_image_to_image(comfy: Comfy) -> Iterator[tuple[str, float, float]]:
    """denoise below 1 is the restarted table on the noised picture."""
    for kind in ("eps", "flow"):
        program = solver(comfy, kind, "epd")
        latent = {"latent": node("RandomLatent", channels=16 if kind == "flow" else 4, batch=2, masked=0.0)}
        graph = graph_of(kind, f"{kind}-epd.json", latent, denoise=0.67)
        graph["kept"] = node("KeepLatent", samples=["latent", 0], name="picture")
        found = comfy.run(graph)
        model = comfy.tiny.make_model(kind).model
        picture = model.process_latent_in(found["picture"])
        first = int(program.mask[program.nfe, 1:].sum())  # evaluations of the first step
        alpha, sigma = float(program.alpha[first]), float(program.sigma[first])
        state = alpha * picture + sigma * noise_like(picture)
        expected = sample(restarted(program, first), denoiser_of(comfy, kind, GUIDANCE), state)
        expected = model.process_latent_out(expected / float(program.level[-1, 0]))
        yield f"image to image {kind}", relative(found["out"], expected), 1e-5


def check_distilling(comfy: Comfy) -> Iterator[tuple[str, float, float]]:
    """Distil, save, and replay the file in a second graph; and how near to the teacher's images that comes."""
    for kind in ("eps", "flow"):
        latent: Graph = {"latent": node("EmptyLatentImage", width=64, height=64, batch_size=4)}
        base = {**prompts(kind), "lora": node("TinyLora", model=["model", 0], strength=1.0), **latent}
        base["other"] = node("CLIPTextEncode", text="a dog", clip=["model", 1])
        given = {"positive": ["positive", 0], "negative": ["negative", 0], "positive_2": ["other", 0]}
        size = {"latent_image": ["latent", 0], "cfg": GUIDANCE, "nfe": 5, "budget": 1500}
        rest = {"seed": 0, "batch": 8, "save_as": f"mine-{kind}"}
        first = {**base, "solver": node("DistilSolver", model=["lora", 0], **given, **size, **rest)}
        first.update(sampled(["solver", 0], ["solver", 1], GUIDANCE, "lora"))
        found = comfy.run(first)["out"]
        second = {**base, "solver": node("LoadLearnedSolver", file=f"mine-{kind}_00001.json", model="from file")}
        second["solver"]["inputs"].update(parallel="auto", denoise=1.0, for_model=["lora", 0])
        second.update(sampled(["solver", 0], ["solver", 1], GUIDANCE, "lora"))
        yield f"distil and replay {kind}", relative(comfy.run(second)["out"], found), 1e-5
        program = load_solver(comfy.solvers / f"mine-{kind}_00001.json")
        alone = sample(program, denoiser_of(comfy, kind, GUIDANCE, lora=True), noise_like(found))
        alone = comfy.tiny.make_model(kind).model.process_latent_out(alone / float(program.level[-1, 0]))
        yield f"distilled {kind}, without ComfyUI", relative(found, alone), 1e-5
        errors = {}
        exact = native(comfy, base, "heun", 200)
        for name in ("euler", "dpmpp_2m"):
            errors[name] = float((native(comfy, base, name, 5) - exact).square().mean().sqrt())
        own = float((found - exact).square().mean().sqrt())
        best = ", ".join(errors)
        yield f"distilled {kind}, error as a share of the best of {best}", own / min(errors.values()), 1.0
        first["solver"]["inputs"]["gradients"] = True
        steeper = float((comfy.run(first)["out"] - exact).square().mean().sqrt())
        yield f"distilled {kind}, with gradients, as a share of without", steeper / own, 1.1


def native(comfy: Comfy, base: Graph, name: str, steps: int) -> Tensor:
    """Latents of a sampler of ComfyUI's own."""
    graph = dict(base)
    graph["solver"] = node("KSamplerSelect", sampler_name=name)
    graph["steps"] = node("BasicScheduler", model=["lora", 0], scheduler="simple", steps=steps, denoise=1.0)
    graph.update(sampled(["solver", 0], ["steps", 0], GUIDANCE, "lora"))
    return comfy.run(graph)["out"]


def check_sentences(comfy: Comfy) -> Iterator[tuple[str, str]]:
    """What is refused, and what is said."""
    for kind, other in (("eps", "flow"), ("flow", "eps")):
        solver(comfy, kind, "epd")
        yield f"{kind} solver, {other} MODEL", refused(comfy, graph_of(other, f"{kind}-epd.json"))
    yield "solver of another noise range", refused(comfy, graph_of("eps", "zoo:epd-cifar10-nfe5"))
    graph = graph_of("eps", "eps-epd.json")
    graph["sigmas"] = node("BasicScheduler", model=["model", 0], scheduler="karras", steps=6, denoise=1.0)
    graph["sample"]["inputs"]["sigmas"] = ["sigmas", 0]
    yield "sigmas of another scheduler", refused(comfy, graph)
    comfy.said.clear()
    comfy.run(graph_of("eps", "eps-epd.json", cfg=7.5))
    yield "another guidance", next((text for text in comfy.said if "guidance" in text), "")
    comfy.said.clear()
    comfy.run(graph_of("eps", "eps-epd.json"))
    if any("fitted" in text for text in comfy.said):
        raise SystemExit(f"said without need: {comfy.said}")


def refused(comfy: Comfy, graph: Graph) -> str:
    """The sentence with which a graph is refused."""
    try:
        comfy.run(graph)
    except RuntimeError as error:
        return str(error).strip()
    return ""


def check_workflows(comfy: Comfy, base: Path) -> Iterator[tuple[str, float, float]]:
    """The example workflows are graphs that this ComfyUI knows, and they run."""
    from PIL import Image

    Image.new("RGB", (64, 64), (90, 140, 200)).save(base / "input" / "example.png")
    for file in sorted((PACKAGE / "example_workflows").glob("*.json")):
        before = set((base / "output").iterdir())
        comfy.run(as_graph(comfy, json.loads(file.read_text(encoding="utf-8"))))
        made = set((base / "output").iterdir()) - before
        yield f"workflow {file.stem}, pictures missing", float(not made), 0.5


def as_graph(comfy: Comfy, workflow: dict[str, Any]) -> Graph:
    """What ComfyUI's interface sends for a saved workflow: inputs from links, and from widgets in their order."""
    links = {link[0]: link for link in workflow["links"]}
    graph: Graph = {}
    for one in workflow["nodes"]:
        made = comfy.nodes.NODE_CLASS_MAPPINGS.get(one["type"])
        if one["type"] == "Note" or made is None:
            if made is None and one["type"] != "Note":
                raise RuntimeError(f"ComfyUI knows no node {one['type']}")
            continue
        linked = {slot["name"]: links[slot["link"]] for slot in one.get("inputs", []) if slot.get("link")}
        inputs: dict[str, Any] = {name: [str(link[1]), link[2]] for name, link in linked.items()}
        values = list(one.get("widgets_values", []))
        declared = made.INPUT_TYPES()
        for name, (kind, *options) in {**declared["required"], **declared.get("optional", {})}.items():
            extra = options[0] if options else {}
            if not (isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")):
                continue
            value = values.pop(0)
            inputs.setdefault(name, value)
            if extra.get("control_after_generate") or extra.get("image_upload"):
                values.pop(0)
        if values:
            raise RuntimeError(f"{one['type']} has no widgets for {values}")
        graph[str(one["id"])] = node(one["type"], **inputs)
    return graph


def main() -> None:
    """Run all checks by both interfaces."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="folder of ComfyUI")
    checkout = parser.parse_args().checkout.resolve()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        comfy = Comfy(checkout, base)
        print(f"ComfyUI {importlib.import_module('comfyui_version').__version__}, torch {torch.__version__}")
        missed = False
        for classic in (False, True):
            print(f"--- {comfy.load_nodes(classic)} node interface")
            for file in comfy.solvers.iterdir():
                file.unlink()
            numbers = (check_playing, check_masks, check_image_to_image, check_distilling)
            for line, error, limit in (row for check in numbers for row in check(comfy)):
                missed |= not error <= limit
                print(f"{line:<62} {error:8.1e}  {'' if error <= limit else f'above {limit:g}'}", flush=True)
            for line, sentence in check_sentences(comfy):
                missed |= not sentence
                print(f"{line}: {sentence or 'NOT SAID'}")
            for line, error, limit in check_workflows(comfy, base):
                missed |= not error <= limit
                print(f"{line:<62} {error:8.0f}")
        sys.exit(int(missed))


if __name__ == "__main__":
    main()
