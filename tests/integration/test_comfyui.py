"""The ComfyUI nodes against a stub of what they touch of ComfyUI."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from functools import reduce
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import solverdistill
from solverdistill import Grid, families, read_solver, sample, save_solver
from solverdistill.consumers.kdiffusion import sigmas_of
from solverdistill.consumers.network_schedule import NetworkSchedule
from solverdistill.noise.paths import EDM, Discrete, Flow
from solverdistill.programs.restarting import restarted
from solverdistill.teachers.mixture import toy_mixture
from tests import comfyui_stub as stub
from tests.comfyui_stub import PACKAGE, ModelPatcher, sample_custom


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """The nodes by the classic interface; models/solvers is `tmp_path`."""
    return stub.load(monkeypatch, tmp_path).NODE_CLASS_MAPPINGS


@pytest.fixture
def node(nodes: dict[str, Any]) -> Any:
    return nodes["LoadLearnedSolver"]


def make_file(folder: Path, path: str = "edm", name: str = "epd", **changes: Any) -> tuple[str, Any]:
    grids = {"edm": Grid(steps=3), "flow": Grid("flow_shift", steps=3, start=1.0, end=0.02, shift=3.0)}
    family = families.build(name, grids[path], path, **({"points": 2} if name == "epd" else {}))
    generator = torch.Generator().manual_seed(4)
    params = {
        key: value + 0.01 * torch.randn(value.shape, generator=generator, dtype=value.dtype)
        for key, value in family.init(1).items()
    }
    facts: dict[str, Any] = {"teacher": {"name": "toy"}, "guidance": 3.5, **changes}
    save_solver(folder / f"{path}.json", family.program(params), family.hyperparameters(), params, facts)
    return f"{path}.json", family.program(params).detach()


def load(node: Any, file: str, **inputs: Any) -> tuple[Any, Any, str]:
    return getattr(node(), node.FUNCTION)(**{"file": file, "model": "from file", "parallel": "auto", **inputs})


def draw() -> Tensor:
    return torch.randn(3, 6, dtype=torch.float64)


# --- playing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["edm", "flow"])
@pytest.mark.parametrize("parallel", ["auto", "as one batch", "one after the other"])
def test_the_node_plays_the_file(node: Any, path: str, parallel: str, tmp_path: Path) -> None:
    file, program = make_file(tmp_path, path)
    sampler, sigmas, about = load(node, file, parallel=parallel)
    assert about == f"epd: nfe {program.nfe}, depth {program.depth}, fitted to toy, guidance 3.5"
    assert sigmas.dtype == torch.float32 and sigmas.device.type == "cpu" and len(sigmas) == 4
    model, noise, previews = ModelPatcher(path == "flow"), draw(), []
    out = sample_custom(sampler, sigmas, noise, model=model, callback=lambda *step: previews.append(step))
    factor = float(program.level[-1, 0])  # ComfyUI gives images in the scale of the data
    expected = sample(program, toy_mixture(), noise) / factor
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)
    assert model.model.batches == ([3] * program.nfe if parallel == "one after the other" else [3, 6] * 3)
    assert [(i, total) for i, _, _, total in previews] == [(0, 3), (1, 3), (2, 3)]


@pytest.mark.parametrize("path", ["edm", "flow"])
@pytest.mark.parametrize("name", ["epd", "gas", "bns"])
@pytest.mark.parametrize("parallel", ["auto", "as one batch"])
def test_a_mask_keeps_what_it_covers(node: Any, path: str, name: str, parallel: str, tmp_path: Path) -> None:
    file, program = make_file(tmp_path, path, name)
    sampler, sigmas, _ = load(node, file, parallel=parallel)
    model, latent, noise = ModelPatcher(path == "flow"), 3 * draw(), draw()
    mask = torch.ones(3, 6, dtype=torch.float64)
    mask[:, 4:] = 0
    out = sample_custom(sampler, sigmas, noise, latent, mask, model)
    assert model.model.batches == [3] * program.nfe
    torch.testing.assert_close(out[:, 4:], latent[:, 4:], rtol=1e-7, atol=0)
    assert (out[:, :4] - latent[:, :4]).abs().max() > 0.2


def test_a_half_kept_picture_is_half_of_it(node: Any, tmp_path: Path) -> None:
    file, program = make_file(tmp_path, "edm", "gas")
    sampler, sigmas, _ = load(node, file)
    model, latent, mask = ModelPatcher(), 3 * draw(), torch.full((3, 6), 0.5, dtype=torch.float64)
    seen: list[Tensor] = []
    model.model.apply = lambda x, sigma: seen.append(torch.tanh(x / (1 + sigma[:, None]))) or seen[-1]  # type: ignore
    noise = draw()
    out = sample_custom(sampler, sigmas, noise, latent, mask, model)
    first = noise + latent / 80.0
    free = first * float(program.A[-1, 0]) + sum(float(b) * d for b, d in zip(program.B[-1], seen, strict=True))
    torch.testing.assert_close(out, (0.5 * free + 0.5 * latent).clone(), rtol=1e-5, atol=1e-5)


def test_a_mask_of_the_noise_level_is_that_of_the_last_evaluation(node: Any, tmp_path: Path) -> None:
    file, program = make_file(tmp_path)
    sampler, sigmas, _ = load(node, file)
    model, latent, told = ModelPatcher(), draw(), []

    def change(sigma: Tensor, mask: Tensor, extra_options: dict[str, Any]) -> Tensor:
        assert extra_options["sigmas"] is sigmas
        told.append(float(sigma[0]))
        return (mask >= sigma[0] / 80).to(mask)

    extra = {"model_options": {"denoise_mask_function": change}, "seed": 7}
    guider = stub.CFGGuider(model)
    guider.conds, guider.inner_model = {}, model.model
    mask = torch.linspace(0, 1, 6, dtype=torch.float64).expand(3, 6) - 0.05
    with torch.inference_mode():
        out = sampler.sample(guider, sigmas, extra, None, draw(), latent, mask, True)
    assert len(told) == program.nfe + 1 and told[0] == pytest.approx(told[-1])  # asked for the last one beforehand
    torch.testing.assert_close(out[:, 0], latent[:, 0], rtol=1e-12, atol=0)
    assert (out[:, 1:] - latent[:, 1:]).abs().min() > 1e-3


@pytest.mark.parametrize("path", ["edm", "flow"])
def test_an_image_goes_on_from_the_middle(node: Any, path: str, tmp_path: Path) -> None:
    file, program = make_file(tmp_path, path)
    latent, noise = draw(), draw()
    for denoise, steps in ((0.7, 2), (0.3, 1), (0.01, 1)):
        sampler, sigmas, about = load(node, file, denoise=denoise)
        assert len(sigmas) == steps + 1 and f"the last {steps} of 3 steps" in about
        out = sample_custom(sampler, sigmas, noise, latent, model=ModelPatcher(path == "flow"))
        k = program.nfe - 3 * steps  # a slope and two points each
        state = float(program.alpha[k]) * latent + float(program.sigma[k]) * noise
        expected = sample(restarted(program, k), toy_mixture(), state) / float(program.level[-1, 0])
        torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)
    assert len(load(node, file, denoise=1.0)[1]) == 4


def test_the_first_state_is_the_one_of_the_fit_wherever_it_begins(node: Any, tmp_path: Path) -> None:
    """One on a variance-preserving path begins at unit noise, which is not sigma times noise in ComfyUI's scale."""
    family = families.build("dpmpp", Grid("time_uniform", steps=3, start=0.7, end=0.01), "vp")
    program = family.program().detach()
    save_solver(tmp_path / "low.json", program, family.hyperparameters(), {}, {"teacher": {"prediction": "eps"}})
    sampler, sigmas, _ = load(node, "low.json")
    noise = draw()
    out = sample_custom(sampler, sigmas, noise)
    expected = sample(program, toy_mixture(), noise) / float(program.level[-1, 0])
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)
    assert float(sigmas[0]) < 20


# --- checks ----------------------------------------------------------------------------------------------------------


def test_foreign_sigmas_are_refused(node: Any, tmp_path: Path) -> None:
    file, _ = make_file(tmp_path)
    sampler, sigmas, _ = load(node, file)
    for foreign in (sigmas[:-1], torch.linspace(14.6, 0, 21)):
        with pytest.raises(ValueError, match="from the SIGMAS output of the node that loads it"):
            sample_custom(sampler, foreign, draw())


@pytest.mark.parametrize(("path", "prediction"), [("edm", "eps"), ("flow", "flow"), ("edm", "flow")])
def test_a_solver_of_the_other_kind_of_model_is_refused(node: Any, path: str, prediction: str, tmp_path: Path) -> None:
    file, _ = make_file(tmp_path, path, teacher={"name": "toy", "prediction": prediction})
    own, other = ModelPatcher(prediction == "flow"), ModelPatcher(prediction != "flow")
    sampler, sigmas, _ = load(node, file)
    said = "a flow model" if prediction == "flow" else "an eps or v model"
    with pytest.raises(ValueError, match=f"was fitted to {said} and the MODEL at hand is"):
        sample_custom(sampler, sigmas, draw(), model=other)
    with pytest.raises(ValueError, match=f"was fitted to {said} and the MODEL at hand is"):
        load(node, file, for_model=other)
    sample_custom(sampler, sigmas, draw(), model=own)
    load(node, file, for_model=own)


def test_a_file_that_does_not_say_takes_the_kind_of_the_model(node: Any, tmp_path: Path) -> None:
    file, _ = make_file(tmp_path)
    sampler, sigmas, _ = load(node, file)
    with pytest.raises(ValueError, match="set `model` of its node to flow"):
        sample_custom(sampler, sigmas, draw(), model=ModelPatcher(True))
    sampler, chosen, _ = load(node, file, for_model=ModelPatcher(True))
    torch.testing.assert_close(chosen, load(node, file, model="flow")[1])
    torch.testing.assert_close(chosen, sigmas / (1 + sigmas))
    sample_custom(sampler, chosen, draw(), model=ModelPatcher(True))
    with pytest.raises(ValueError, match="set `model` of its node to eps or v"):
        sample_custom(sampler, chosen, draw())


def test_other_noise_is_refused_or_said(node: Any, tmp_path: Path) -> None:
    file, _ = make_file(tmp_path)
    low = ModelPatcher()
    low.model.model_sampling.sigma_max = torch.tensor(14.6)
    with pytest.raises(ValueError, match=r"noise of sigma .* was trained up to 14.6"):
        load(node, file, for_model=low)
    known = {"name": "toy", "prediction": "eps", "path": {"name": "edm"}, "noise_range": [80.0, 0.002], "shape": [3, 2]}
    file, _ = make_file(tmp_path, teacher=known)
    high = ModelPatcher()
    high.model.model_sampling.sigma_max = torch.tensor(200.0)
    about = load(node, file, for_model=high)[2]
    assert "samples of 3 channels, which have 6 here" in about and "noise up to sigma 80, which goes to 200" in about
    assert "noise up to" not in load(node, file, for_model=ModelPatcher())[2]
    other = ModelPatcher()
    other.model.model_sampling.noise_scaling = lambda sigma, noise, latent, most=False: 2 * sigma * noise + latent
    with pytest.raises(ValueError, match="adds noise as neither eps nor flow models do"):
        load(node, file, for_model=other)


@pytest.mark.parametrize("guidance", [3.5, {"scale": 3.5, "interval": [1.0, 0.1]}])
def test_another_guidance_is_said(node: Any, guidance: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    file, _ = make_file(tmp_path, guidance=guidance)
    sampler, sigmas, _ = load(node, file)
    with caplog.at_level(logging.WARNING):
        sample_custom(sampler, sigmas, draw(), cfg=7.0)
    assert "this solver was fitted for guidance 3.5 and is played with 7" in caplog.text
    caplog.clear()
    sample_custom(sampler, sigmas, draw(), cfg=3.5)
    assert ("of which cfg has the scale alone" in caplog.text) == isinstance(guidance, dict)


def test_guidance_that_the_network_is_told_counts_in_place_of_cfg(
    node: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    file, _ = make_file(tmp_path)
    sampler, sigmas, _ = load(node, file)
    model = ModelPatcher()
    model.model.model_config = type("Config", (), {"unet_config": {"guidance_embed": True}})()  # type: ignore[attr-defined]
    guider = stub.CFGGuider(model)
    for told, differs in ((3.5, False), (2.0, True)):
        caplog.clear()
        guider.inner_set_conds({"positive": [[torch.ones(1), {"guidance": told}]], "negative": [[torch.ones(1), {}]]})
        guider.sample(draw(), torch.zeros(3, 6), sampler, sigmas, None, None, True, 7)
        assert ("is played with 2" in caplog.text) == differs


def test_the_kind_of_model_can_be_chosen(node: Any, tmp_path: Path) -> None:
    file, _ = make_file(tmp_path)
    edm, flow = (load(node, file, model=model)[1] for model in ("eps or v", "flow"))
    torch.testing.assert_close(flow, edm / (1 + edm))
    told, _ = make_file(tmp_path, teacher={"prediction": "flow"})
    torch.testing.assert_close(load(node, told)[1], flow)


# --- files -----------------------------------------------------------------------------------------------------------


def test_files_come_from_the_folder_the_zoo_or_anywhere(node: Any, tmp_path: Path) -> None:
    file, _ = make_file(tmp_path)
    (tmp_path / "notes.txt").write_text("no solver")
    offered = node.INPUT_TYPES()["required"]["file"][0]
    assert offered[0] == file and "notes.txt" not in offered and "zoo:epd-cifar10-nfe5" in offered
    nested = tmp_path / "elsewhere"
    nested.mkdir()
    make_file(nested)
    for place in (file, str(nested / file), "zoo:epd-cifar10-nfe5"):
        assert node.VALIDATE_INPUTS(file=place) is True and len(load(node, place)) == 3


def test_a_file_is_checked_before_the_run_and_noticed_when_it_changes(node: Any, tmp_path: Path) -> None:
    file, _ = make_file(tmp_path)
    assert node.VALIDATE_INPUTS(file=file) is True and node.VALIDATE_INPUTS() is True
    assert "cannot be read" in node.VALIDATE_INPUTS(file=str(tmp_path / "none.json"))
    before = node.IS_CHANGED(file=file, model="from file", parallel="auto")
    assert node.IS_CHANGED(file=file, model="from file", parallel="auto") == before
    make_file(tmp_path, guidance=2.0)
    assert node.IS_CHANGED(file=file, model="from file", parallel="auto") != before


def test_a_place_that_is_none_is_told_in_a_sentence(node: Any) -> None:
    for place in ("~nosuchuser/solver.json", "zoo:none", "", "\0", "/", "none.json"):
        told = node.VALIDATE_INPUTS(file=place)
        assert isinstance(told, str) and told and "\n" not in told
        assert node.IS_CHANGED(file=place, model="from file", parallel="auto") == place
        with pytest.raises(ValueError) as raised:
            load(node, place)
        assert str(raised.value) == told
    assert "~nosuchuser is the home folder of nobody here" in node.VALIDATE_INPUTS(file="~nosuchuser/solver.json")


def test_a_choice_of_another_version_is_told_in_a_sentence(node: Any, tmp_path: Path) -> None:
    file, _ = make_file(tmp_path)
    for name, others in (("model", "from file, eps or v, flow"), ("parallel", "auto, as one batch, one after")):
        with pytest.raises(ValueError, match=f"{name} of the node is 'gone'; known: {others}"):
            load(node, file, **{name: "gone"})


ODD = ("GONE", None, "word", [], {}, True, -1, 1e300, {"name": "flow"}, {"name": 5}, {"name": "discrete"})


@pytest.mark.parametrize("path", ["edm", "flow"])
@pytest.mark.parametrize("part", ["family", "provenance", "program"])
def test_a_file_that_lacks_a_key_plays_or_is_refused(node: Any, path: str, part: str, tmp_path: Path) -> None:
    """Every entry of a file, down to the fourth level, gone or replaced by something else."""
    described = {**toy_mixture().description(), "prediction": "flow" if path == "flow" else "eps"}
    file, _ = make_file(tmp_path, path, "gas", teacher=described)
    document, model = json.loads((tmp_path / file).read_text()), ModelPatcher(flow=path == "flow")

    def places(value: Any, place: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        pairs = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
        for key, below in pairs:
            yield (*place, key)
            yield from places(below, (*place, key)) if len(place) < 4 else ()

    tried = 0
    for place, odd in product(list(places(document[part], (part,))), ODD):
        changed = deepcopy(document)
        holder = reduce(lambda value, key: value[key], place[:-1], changed)
        if odd == "GONE":
            del holder[place[-1]]
        else:
            holder[place[-1]] = odd
        (tmp_path / file).write_text(json.dumps(changed))
        told = node.VALIDATE_INPUTS(file=file)
        for inputs in ({}, {"model": "flow"}, {"for_model": model}):
            with suppress(ValueError):
                load(node, file, **inputs)
                assert told is True
        tried += 1
    assert tried > 100


# --- distilling ------------------------------------------------------------------------------------------------------


def distil(node: Any, model: ModelPatcher, **changes: Any) -> tuple[Any, Any, str, str]:
    prompt, none = [[torch.full((1, 2), 0.5), {}]], [[torch.zeros(1, 2), {}]]
    inputs = {"positive": prompt, "negative": none, "latent_image": {"samples": torch.zeros(1, 6)}, "cfg": 2.0}
    inputs |= {"nfe": 3, "budget": 400, "seed": 0, "batch": 4, "save_as": "mine"}
    with torch.inference_mode():
        return node().run(model=model, **{**inputs, **changes})


@pytest.mark.parametrize("flow", [False, True])
def test_a_distilled_solver_is_saved_and_played_again(nodes: dict[str, Any], flow: bool, tmp_path: Path) -> None:
    model = ModelPatcher(flow)
    sampler, sigmas, file, about = distil(nodes["DistilSolver"], model)
    assert file == "mine_00001.json" and about.startswith("corrected: nfe 3") and "evaluations" in about
    stored = read_solver(tmp_path / file)
    assert stored.provenance["guidance"] == 2.0 and stored.provenance["teacher"]["cfg"] == 2.0
    assert max(model.model.batches) <= 4
    steps = [step for step, _, _ in model.told]  # type: ignore[attr-defined]
    assert steps == sorted(steps) and steps[-1] + 1 == sum(model.model.batches)
    again, same, _ = load(nodes["LoadLearnedSolver"], file, for_model=model)
    torch.testing.assert_close(same, sigmas)
    prompt = {"positive": [[torch.full((1, 2), 0.5), {}]], "negative": [[torch.zeros(1, 2), {}]]}
    outs = []
    noise = torch.randn(2, 6)
    for one in (sampler, again):
        guider = stub.CFGGuider(model)
        guider.inner_set_conds(prompt)
        guider.set_cfg(2.0)
        outs.append(guider.sample(noise, torch.zeros(2, 6), one, sigmas, None, None, True, 7))
    torch.testing.assert_close(outs[0], outs[1], rtol=0, atol=0)
    program, guided = stored.program, 0.1 * 2.0 * 0.5
    exact = sample(program, lambda x, a, s: toy_mixture()(x, a, s) + guided, noise) / float(program.level[-1, 0])
    torch.testing.assert_close(outs[0], exact.to(outs[0]), rtol=1e-4, atol=1e-4)
    assert distil(nodes["DistilSolver"], model)[2] == "mine_00002.json"


def test_every_prompt_takes_part_in_the_fit(nodes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    asked = stub.sampling_function

    def listen(model: Any, x: Tensor, timestep: Tensor, uncond: Any, cond: Any, *others: Any, **named: Any) -> Tensor:
        seen.extend([float(cond[0]["cross"].mean())] * len(x))
        return asked(model, x, timestep, uncond, cond, *others, **named)

    monkeypatch.setattr(sys.modules["comfy.samplers"], "sampling_function", listen)
    more = [[torch.full((1, 2), 3.0), {}]]
    distil(nodes["DistilSolver"], ModelPatcher(True), positive_2=more)
    shares = {value: seen.count(value) / len(seen) for value in set(seen)}
    assert set(shares) == {0.5, 3.0} and min(shares.values()) > 0.2


def test_gradients_pass_through_what_was_made_in_inference_mode(nodes: dict[str, Any]) -> None:
    differentiable = sys.modules[f"{stub.NAME}.gradients"].differentiable
    with torch.inference_mode():
        model = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.BatchNorm1d(6)).eval().requires_grad_(False)
        entry = SimpleNamespace(cond=torch.randn(2, 6))
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    x = torch.randn(2, 6, requires_grad=True)
    with pytest.raises(RuntimeError, match="[Ii]nference tensors cannot be saved for backward"):
        model(x * entry.cond)
    with differentiable(model, {"positive 0": [{"model_conds": {"text": entry, "area": object()}}]}):
        (model(x * entry.cond)).sum().backward()
        assert model[0].weight.data_ptr() == own["0.weight"].data_ptr()
    scale = model[1].weight / (model[1].running_var + model[1].eps).sqrt()
    torch.testing.assert_close(x.grad, entry.cond * (scale @ model[0].weight))
    assert all(value is own[name] for name, value in model.named_parameters())


def test_a_solver_can_be_distilled_with_gradients(nodes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = ModelPatcher(True), []
    apply = model.model.apply
    monkeypatch.setattr(model.model, "modules", lambda: [], raising=False)
    monkeypatch.setattr(stub, "WATCHES_GRADIENTS", False)
    monkeypatch.setattr(model.model, "apply", lambda x, s: (asked.append(x.requires_grad), apply(x, s))[1])
    about = distil(nodes["DistilSolver"], model, gradients=True, budget=2500)[3]
    assert any(asked) and not all(asked) and "RMSE" in about


@pytest.mark.parametrize("known", [{}, {"beta_schedule": "linear", "beta_start": 0.001, "beta_end": 0.03}])
def test_a_discrete_schedule_is_described_for_other_libraries(nodes: dict[str, Any], known: dict[str, Any]) -> None:
    facts_of = sys.modules[f"{stub.NAME}.teacher"].facts_of
    squares = torch.exp(2 * Discrete(**known).table[1])
    ratios = ((1 - squares) / squares).sqrt().float()
    members = {"sigmas": ratios, "sigma_min": ratios[0], "sigma_max": ratios[-1]}
    kinds = type("ModelSamplingDiscrete", (), {}), type("V_PREDICTION", (stub.Eps,), {})
    path, (start, end), prediction = facts_of(type("Sampling", kinds, members)())
    assert prediction == "v" and start == 1.0 and (path == Discrete()) == (not known)
    for ratio, s in ((ratios[-1], start), (ratios[0] / 5, end)):
        level = path.level(s)
        assert float(level.sigma / level.alpha) == pytest.approx(float(ratio), rel=1e-4)
    teacher = {"prediction": prediction, "path": path.hyperparameters()}
    assert NetworkSchedule.from_teacher(teacher).prediction == "v_prediction"


def test_a_flow_schedule_keeps_its_shift(nodes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    facts_of = sys.modules[f"{stub.NAME}.teacher"].facts_of
    monkeypatch.setattr(stub.Flow, "percent_to_sigma", lambda self, percent: float(Flow(3.0).sigma(1 - percent)))
    assert facts_of(stub.Flow()) == (Flow(3.0), (1.0, 0.0), "flow")
    assert facts_of(stub.Eps()) == (EDM(), (80.0, pytest.approx(0.002)), "denoised")


def test_a_name_stays_in_its_folder(nodes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is no name of a file in solvers"):
        distil(nodes["DistilSolver"], ModelPatcher(True), save_as="../elsewhere")


# --- the package -----------------------------------------------------------------------------------------------------


def test_both_interfaces_declare_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    classic = stub.load(monkeypatch, tmp_path).NODE_CLASS_MAPPINGS
    module = stub.load(monkeypatch, tmp_path, current=True)
    assert not hasattr(module, "NODE_CLASS_MAPPINGS")
    current = {made.__name__: made for made in asyncio.run(module.comfy_entrypoint().get_node_list())}
    assert set(classic) == set(current) == {"LoadLearnedSolver", "DistilSolver"}
    for name, made in current.items():
        schema = made.define_schema().facts
        inputs = {one.names[0]: one.facts for one in schema["inputs"]}
        groups = classic[name].INPUT_TYPES()
        declared = {**groups["required"], **groups.get("optional", {})}
        assert list(inputs) == list(declared)
        for one, (kind, options) in declared.items():
            told = {key: value for key, value in inputs[one].items() if key not in ("optional", "options")}
            assert told == options and options["tooltip"]
            assert inputs[one].get("options", kind) == kind
        assert [one.facts["display_name"] for one in schema["outputs"]] == list(classic[name].RETURN_NAMES)
    file, _ = make_file(tmp_path)
    loader = current["LoadLearnedSolver"]
    sigmas = loader.execute(file=file, model="from file", parallel="auto")[1]
    torch.testing.assert_close(sigmas, sigmas_of(read_solver(tmp_path / file)))
    assert loader.validate_inputs(file=file) is True and loader.fingerprint_inputs(file=file, model="flow")


def test_the_metadata_is_that_of_the_package() -> None:
    facts = tomllib.loads((PACKAGE / "pyproject.toml").read_text(encoding="utf-8"))
    project, registry = facts["project"], facts["tool"]["comfy"]
    assert project["version"] == solverdistill.__version__
    assert (PACKAGE / "requirements.txt").read_text(encoding="utf-8").split() == project["dependencies"]
    assert registry["PublisherId"] and registry["Icon"].endswith("integrations/comfyui/icon.svg")
    assert 'width="400" height="400"' in (PACKAGE / "icon.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize("file", sorted((PACKAGE / "example_workflows").glob("*.json")), ids=lambda file: file.stem)
def test_an_example_workflow_fits_the_nodes(nodes: dict[str, Any], file: Path) -> None:
    """The nodes of this folder; `scripts/benchmarks/comfyui.py` runs the whole graphs in a real ComfyUI."""
    workflow = json.loads(file.read_text(encoding="utf-8"))
    ids = {one["id"]: one for one in workflow["nodes"]}
    for _, source, slot, target, place, kind in workflow["links"]:
        assert ids[source]["outputs"][slot]["type"] == ids[target]["inputs"][place]["type"] == kind
    own = [one for one in workflow["nodes"] if one["type"] in nodes]
    assert own and file.with_suffix(".jpg").read_bytes()[:2] == b"\xff\xd8"
    for one in own:
        groups = nodes[one["type"]].INPUT_TYPES()
        declared = {**groups["required"], **groups.get("optional", {})}
        slots = {name for name, (kind, _) in declared.items() if kind in ("MODEL", "CONDITIONING", "LATENT")}
        assert {slot["name"] for slot in one["inputs"]} == slots
        widgets = [(name, *entry) for name, entry in declared.items() if name not in slots]
        assert len(one["widgets_values"]) == len(widgets)
        for value, (_, kind, options) in zip(one["widgets_values"], widgets, strict=True):
            if isinstance(kind, list):
                assert value in kind
            else:
                assert isinstance(value, {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool}[kind])
                assert options.get("min", value) <= value <= options.get("max", value)
        assert [output["type"] for output in one["outputs"]] == list(nodes[one["type"]].RETURN_TYPES)


def test_the_nodes_need_nothing_that_comfyui_does_not_bring(tmp_path: Path) -> None:
    """Neither to be loaded nor to distil."""
    code = f"""
import sys
from pathlib import Path

HEAVY = "lightning hydra omegaconf torchmetrics sklearn matplotlib rich torchdiffeq diffusers wandb".split()

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HEAVY:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

from tests import comfyui_stub as stub
for name in [name for name in sys.modules if name.partition(".")[0] in HEAVY]:
    del sys.modules[name]
sys.meta_path.insert(0, Absent())
sys.modules.update(stub.make_modules(Path({str(tmp_path)!r}), False))
sys.path.insert(0, str(stub.PACKAGE.parent))
import comfyui, torch
node = comfyui.NODE_CLASS_MAPPINGS["DistilSolver"]()
cond = [[torch.zeros(1, 2), dict()]]
given = dict(model=stub.ModelPatcher(True), positive=cond, negative=cond, cfg=1.0, nfe=2, budget=200, seed=0)
print(node.run(**given, latent_image=dict(samples=torch.zeros(1, 6)), batch=8, save_as="mine")[2])
"""
    root = str(PACKAGE.parents[1])
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert result.stdout.strip() == "mine_00001.json", result.stderr
