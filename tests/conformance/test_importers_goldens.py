"""Imported files against the published numbers: coefficients, states, and what comes back from the solver file."""

from __future__ import annotations

import json
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from solverdistill import load_solver, read_solver
from solverdistill.families import build
from solverdistill.families.learned.epd import EPD
from solverdistill.importers import Imported, Settings, import_solver
from solverdistill.importers.amed import mean_coefficients
from solverdistill.importers.known_models import find_model
from solverdistill.importers.levels import published_levels
from solverdistill.importers.predictor_files import Predictor
from solverdistill.noise.levels import float64
from solverdistill.programs.playing import sample
from solverdistill.support.facts import Facts
from solverdistill.teachers.mixture import Mixture
from tests.helpers import golden_mixture

GOLDENS = Path(__file__).parents[1] / "goldens"
PUBLISHED = GOLDENS / "published"
CLOSE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}


@cache
def tables(name: str) -> list[dict[str, Any]]:
    return json.loads((PUBLISHED / f"{name}.json").read_text())["tables"]


def table(name: str, part: str) -> dict[str, Any]:
    return next(entry for entry in tables(name) if part in entry["source"])


def arrays(path: Path) -> dict[str, Tensor]:
    with np.load(path) as golden:
        return {key: float64(golden[key]) for key in golden.files if golden[key].dtype.kind in "fib"}


def write(folder: Path, document: Any, name: str = "table.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(document))
    return path


def denoiser(golden: dict[str, Tensor]) -> Mixture:
    if "gm_means" in golden:
        return Mixture(golden["gm_means"], golden["gm_weights"], golden["gm_stds"])
    return golden_mixture(golden)


def round_trip(found: Imported, folder: Path) -> Imported:
    """Save, load, and check that the file plays the same table and makes the same family."""
    path = found.save(folder / "solver.json")
    loaded = read_solver(path)
    for name in ("A", "B", "alpha", "sigma", "level", "mask"):
        assert torch.equal(getattr(loaded.program, name), getattr(found.program, name)), name
    if found.family is not None and found.params is not None:
        again = build(**loaded.family)
        assert again == found.family
        assert all(torch.equal(loaded.params[name], value) for name, value in found.params.items())
        assert torch.equal(again.program(loaded.params).B, found.program.B)
    assert loaded.provenance["imported"] == found.provenance["imported"]
    assert load_solver(path).nfe == found.program.nfe
    return found


@pytest.mark.parametrize(
    ("golden_name", "part", "family"),
    [
        ("importer_epd_cifar10_nfe5", "00002-cifar10-4-5-epd", "epd"),
        ("importer_plugin_cifar10_nfe5", "00018-cifar10-4-5-ipndm", "epd_ipndm"),
    ],
)
def test_epd_coefficients_are_the_expected_ones(golden_name: str, part: str, family: str, tmp_path: Path) -> None:
    golden = arrays(PUBLISHED / f"{golden_name}.npz")
    found = round_trip(import_solver(write(tmp_path, table("epd", part))), tmp_path)
    assert isinstance(found.family, EPD) and found.params is not None
    assert (found.family.name, found.family.afs, found.program.nfe, found.program.depth) == (family, True, 8, 5)
    values = found.family.prepare(found.params)
    for name in ("r", "weight", "scale_dir", "scale_time"):
        torch.testing.assert_close(getattr(values, name), golden[name], rtol=1e-12, atol=1e-12)
    for name, value in found.params.items():
        assert torch.equal(value, golden[f"raw_{name}"]), name
    single = [80.0, 6.950277805328369, 1.286681056022644, 0.002013235120102763]  # what the file itself stores
    assert found.family.grid == pytest.approx(single, rel=1e-6)
    assert found.provenance["teacher"]["name"] == "edm-cifar10-32x32-uncond-vp"


@pytest.mark.parametrize("name", ["epd", "dyweight", "adasde"])
def test_every_published_table_plays(name: str, tmp_path: Path) -> None:
    """Also those of latent and flow models, each at a finite end point."""
    noise, model = torch.randn(3, 6, dtype=torch.float64), Mixture(*toy())
    for entry in tables(name):
        found = import_solver(write(tmp_path, entry))
        assert found.family is not None and found.family.name in ("epd", "epd_ipndm", "dyweight")
        end = sample(found.program, model, noise)
        assert end.isfinite().all() and end.abs().max() < 10, entry["source"]
        assert not found.provenance["imported"]["remarks"] or name == "adasde" or found.family.path.name == "flow"


def toy() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    return means, torch.full((4,), 0.25, dtype=torch.float64), torch.full((4,), 0.3, dtype=torch.float64)


@pytest.mark.parametrize(
    ("golden_name", "part"),
    [
        ("cifar_nfe3", "00000-cifar-nfe3"),
        ("cifar_nfe5", "00003-cifar-nfe5"),
        ("ffhq_nfe9", "00014-ffhq-nfe9"),
        ("afhqv2_nfe5", "00017-afhqv2-nfe5"),
    ],
)
def test_dyweight_files_give_the_official_states(golden_name: str, part: str, tmp_path: Path) -> None:
    golden = arrays(GOLDENS / "dyweight" / f"{golden_name}.npz")
    found = round_trip(import_solver(write(tmp_path, table("dyweight", part))), tmp_path)
    states = sample(found.program, denoiser(golden), golden["z"], readouts=True)
    torch.testing.assert_close(states, golden["states_unguarded"][1:], **CLOSE)


@pytest.mark.parametrize("nfe", [3, 5, 7])
def test_dyweight_flux_checkpoints_give_the_official_end_points(nfe: int, tmp_path: Path) -> None:
    golden, entry = arrays(GOLDENS / "dyweight" / f"flux_nfe{nfe}.npz"), table("dyweight_flux", f"nfe{nfe}")
    document = {name: torch.tensor(entry[name]) for name in ("dyweight_weights_raw", "dyweight_t_scales")}
    torch.save({**document, "window_size": entry["window_size"]}, tmp_path / "flux.pt")
    found = round_trip(import_solver(tmp_path / "flux.pt"), tmp_path)
    end = sample(found.program, denoiser(golden), golden["z"])
    torch.testing.assert_close(end, golden["x_out"], rtol=0.0, atol=1e-6)  # factors are stored in single precision


def test_the_deterministic_part_of_adasde_is_the_official_sampler_without_noise(tmp_path: Path) -> None:
    golden = arrays(PUBLISHED / "adasde_cifar10_nfe5.npz")
    path = write(tmp_path, table("adasde", "cifar10-4-5"))
    found = round_trip(import_solver(path, Settings(grid=golden["grid"].tolist())), tmp_path)
    states = sample(found.program, denoiser(golden), golden["z"], readouts=True)
    torch.testing.assert_close(states, golden["states"][1:], **CLOSE)
    assert "deterministic part" in found.remarks[0]


AMED = sorted(path.stem for path in PUBLISHED.glob("amed_*.npz"))


def amed_table(name: str) -> dict[str, Any]:
    with np.load(PUBLISHED / f"{name}.npz") as golden:
        meta = json.loads(str(golden["meta"]))
        tensors = {
            key.removeprefix("param_").replace("__", "."): golden[key].tolist()
            for key in golden.files
            if key.startswith("param_")
        }
    settings = {"num_steps": meta["N"], "sampler_stu": meta["student"], "afs": meta["afs"]}
    settings |= {"schedule_type": meta["schedule_type"], "schedule_rho": meta["rho"], "dataset_name": "cifar10"}
    settings |= {"scale_dir": meta["sd"], "scale_time": meta["st"], "max_order": meta.get("max_order")}
    settings |= {name: meta[name] for name in ("predict_x0", "lower_order_final") if name in meta}
    return {"class_name": "AMED_predictor", "init_kwargs": settings, "parameters": tensors}


@pytest.mark.parametrize("name", AMED)
@pytest.mark.parametrize("image", [0, 5])
def test_amed_with_the_features_of_one_image_gives_the_states_of_that_image(
    name: str, image: int, tmp_path: Path
) -> None:
    golden = arrays(PUBLISHED / f"{name}.npz")
    features = golden["bottleneck"][:, image]
    found = round_trip(import_solver(write(tmp_path, amed_table(name)), Settings(features=features)), tmp_path)
    states = sample(found.program, denoiser(golden), golden["z"][image : image + 1], readouts=True)
    torch.testing.assert_close(states, golden["states"][1:, image : image + 1], **CLOSE)
    assert "mean coefficients" in found.remarks[0]
    assert (found.family is None) == ("amed_amed" not in name)


@pytest.mark.parametrize("afs", [False, True])
@pytest.mark.parametrize(
    ("student", "options", "classical"),
    [
        ("ipndm", {"max_order": 4}, ("ipndm", {"max_order": 4})),
        ("dpmpp", {"max_order": 3, "predict_x0": True}, ("dpmpp", {"order": 3, "predict_x0": True})),
        ("dpmpp", {"max_order": 3, "predict_x0": False}, ("dpmpp", {"order": 3, "predict_x0": False})),
        ("dpmpp", {"max_order": 2, "lower_order_final": False}, ("dpmpp", {"order": 2, "lower_order_final": False})),
        ("euler", {}, ("euler", {})),
    ],
)
def test_amed_without_scales_is_the_classical_solver_on_its_own_levels_and_the_learned_ones(
    student: str, options: dict[str, Any], classical: tuple[str, dict[str, Any]], afs: bool, tmp_path: Path
) -> None:
    entry = amed_table(AMED[0])
    settings = {**entry["init_kwargs"], **options, "sampler_stu": student, "scale_dir": 0.0, "scale_time": 0.0}
    entry["init_kwargs"] = {**settings, "afs": afs}
    found = import_solver(write(tmp_path, entry))
    levels = published_levels("polynomial", settings["num_steps"], find_model("cifar10"))
    predictor = Predictor("AMED_predictor", Facts("", entry["init_kwargs"]), tensors_of(entry))
    mean = mean_coefficients(predictor, levels, None)
    grid = [levels[0]]
    for i, (start, end) in enumerate(pairwise(levels)):
        grid += [end ** float(mean.r[i]) * start ** (1 - float(mean.r[i])), end]
    expected = build(classical[0], grid, afs=afs, **classical[1]).program()
    noise, model = torch.randn(3, 6, dtype=torch.float64), Mixture(*toy())
    torch.testing.assert_close(sample(found.program, model, noise), sample(expected, model, noise), **CLOSE)


def tensors_of(entry: dict[str, Any]) -> dict[str, Tensor]:
    return {name: float64(value) for name, value in entry["parameters"].items()}


def test_amed_averages_coefficients_over_samples(tmp_path: Path) -> None:
    golden = arrays(PUBLISHED / f"{AMED[0]}.npz")
    found = import_solver(write(tmp_path, amed_table(AMED[0])), Settings(features=golden["bottleneck"]))
    assert isinstance(found.family, EPD) and found.params is not None
    values = found.family.prepare(found.params)
    for name in ("r", "scale_dir", "scale_time"):
        torch.testing.assert_close(getattr(values, name)[:, 0], golden[name].mean(1), rtol=1e-9, atol=1e-9)


GAS_FILES = ["gs_edm_nfe4_random", "gs_edm_nfe6_random", "gs_edm_nfe6_order3_random", "gs_ldm64_nfe6_random"]


def gas_tensors(golden: dict[str, Tensor]) -> list[Tensor]:
    order = max(int(key[7:-5]) for key in golden if key.startswith("param_c"))
    names = ["mu_logit", "t_couple", *(f"{kind}{i + 1}_diff" for i in range(order) for kind in "ca")]
    return [golden[f"param_{name}"] for name in names]


@pytest.mark.parametrize("name", GAS_FILES)
@pytest.mark.parametrize("layout", ["checkpoint", "list", "dict"])
def test_gas_checkpoints_give_the_official_states(name: str, layout: str, tmp_path: Path) -> None:
    golden = arrays(GOLDENS / "gas" / f"{name}.npz")
    tensors = gas_tensors(golden)
    documents: dict[str, Any] = {
        "checkpoint": {"ema": {"decay": 0.999, "shadow_params": tensors}, "model": [0 * t for t in tensors], "step": 1},
        "list": tensors,
        "dict": {str(i): tensor for i, tensor in enumerate(tensors)},
    }
    torch.save(documents[layout], tmp_path / "students.pt")
    settings = Settings(model="sd15" if "ldm" in name else "cifar10")
    found = round_trip(import_solver(tmp_path / "students.pt", settings), tmp_path)
    states = sample(found.program, denoiser(golden), golden["x_T"], readouts=True)
    torch.testing.assert_close(states, golden["x_states"][1:], **CLOSE)


LD3_FILES = [
    ("ld3_edm_ipndm_o3_nfe4_perturbed", {"solver": "ipndm", "order": 3}),
    ("ld3_edm_dpmpp_o2_nfe6_perturbed", {"solver": "dpmpp", "order": 2}),
    ("ld3_ldm_ipndm_o2_nfe4_perturbed", {"solver": "ipndm", "order": 2}),
    ("ld3_ldm_dpmpp_o2_nfe10_perturbed", {"solver": "dpmpp", "order": 2}),
]


def ld3_document(golden: dict[str, Tensor]) -> dict[str, Tensor]:
    times = torch.cat([golden["t_steps1"], golden["t_steps2"]])
    return {"params1": golden["param_params1"], "params2": golden["param_params2"], "best_t_steps": times}


@pytest.mark.parametrize(("name", "options"), LD3_FILES)
def test_ld3_checkpoints_give_the_official_end_points(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    golden = arrays(GOLDENS / "gas" / f"{name}.npz")
    torch.save(ld3_document(golden), tmp_path / "best_v2.pt")
    found = round_trip(import_solver(tmp_path / "best_v2.pt", Settings(**options)), tmp_path)
    end = sample(found.program, denoiser(golden), golden["latent"])
    torch.testing.assert_close(end, golden["x0"], **CLOSE)


@pytest.mark.parametrize("name", ["edm_ipndm_o3", "ldm_unipc_bh2_o3"])
def test_ld3_checkpoints_of_the_official_trainer_are_read(name: str, tmp_path: Path) -> None:
    golden = arrays(GOLDENS / "gas" / f"ld3_train_{name}_nfe4.npz")
    document = {key: golden[f"ckpt_{key}"].float() for key in ("params1", "params2", "best_t_steps")}
    torch.save(document, tmp_path / "best_v1.pt")
    solver, *rest = name.split("_")[1:]
    settings = Settings(solver=solver, order=3, variant=rest[0] if rest[1:] else None)
    found = import_solver(tmp_path / "best_v1.pt", settings)
    assert found.program.nfe == 4


def dss_document(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    golden = arrays(GOLDENS / "dss_bespoke_dode" / "dss_fm_published.npz")
    return {"timedeltas": golden[f"{name}_dt"].tolist(), "coeffs": golden[f"{name}_coeffs"].tolist()}, golden


def mixture_of_dss() -> Mixture:
    model = arrays(GOLDENS / "dss_bespoke_dode" / "gm_model.npz")
    return Mixture(model["mu"], model["w"], model["s"])


@pytest.mark.parametrize("name", [f"dcn_{n}" for n in (5, 6, 7, 8, 9, 10, 15)] + [f"sit_{n}" for n in range(5, 11)])
def test_neuralsolver_flow_tables_give_the_official_states(name: str, tmp_path: Path) -> None:
    document, golden = dss_document(name)
    found = round_trip(import_solver(write(tmp_path, document), Settings(model=name.split("_")[0])), tmp_path)
    states = sample(found.program, mixture_of_dss(), golden["x_init"], readouts=True)
    past_clean_data = sum(document["timedeltas"]) > 1 + 1e-12
    assert bool(found.remarks) == past_clean_data
    assert found.program.level[-1, 1] >= 0
    tolerance = 1e-3 if past_clean_data else 1e-11
    torch.testing.assert_close(states, golden[f"{name}_states"][1:], rtol=0.0, atol=tolerance)


@pytest.mark.parametrize("steps", [5, 7, 10])
def test_neuralsolver_vp_tables_are_read_from_python_source(steps: int, tmp_path: Path) -> None:
    golden = arrays(GOLDENS / "dss_bespoke_dode" / "dss_vp_published.npz")
    entries = {
        f"step{n}": f"dict(timedeltas={golden[f'N{n}_dt'].tolist()}, coeffs={golden[f'N{n}_coeffs'].tolist()})"
        for n in (5, 7, 10)
    }
    body = ", ".join(f"{name}={value}" for name, value in entries.items())
    source = tmp_path / "ns_sampling.py"
    source.write_text(f"import torch\nraise SystemExit('this line is never run')\nDDPM_DATA = dict({body})\n")
    found = round_trip(import_solver(source, Settings(steps=steps)), tmp_path)
    assert found.provenance["teacher"]["name"] == "DiT-XL/2 256x256"
    states = sample(found.program, mixture_of_dss(), golden["x_init"], readouts=True)
    torch.testing.assert_close(states, golden[f"N{steps}_sched_cont_states"][1:], rtol=0.0, atol=1e-11)


def test_epd_on_a_flow_gives_the_official_states_on_its_levels(tmp_path: Path) -> None:
    golden = arrays(GOLDENS / "epd" / "epd_flow_K2_N4_sd0_st0.npz")
    names = ("r_params", "scale_dir_params", "scale_time_params", "weight_s")
    document = {
        "class_name": "EPD_predictor",
        "init_kwargs": {
            **{"num_steps": 4, "num_points": 2, "sampler_stu": "epd", "schedule_type": "flowmatch", "afs": False},
            **{"scale_dir": 0.0, "scale_time": 0.0, "backend": "sd3", "guidance_type": "cfg", "guidance_rate": 4.5},
        },
        "parameters": {name: golden[f"raw_{name}"].tolist() for name in names},
    }
    path = write(tmp_path, document)
    found = round_trip(import_solver(path, Settings(grid=golden["sigmas"].tolist())), tmp_path)
    states = sample(found.program, golden_mixture(golden), golden["z"], readouts=True)
    torch.testing.assert_close(states, golden["states"][1:], **CLOSE)
    assert found.provenance["guidance"] == 4.5
    assert import_solver(path).family != found.family


def test_effective_values_of_the_cold_start_are_inverted(tmp_path: Path) -> None:
    r, weight = np.array([[0.335, 0.665]] * 3), np.array([[0.25, 0.75]] * 3)
    scale = np.array([[0.98, 1.03]] * 3)
    np.savez(tmp_path / "start.npz", r=r, weight=weight, scale_time=scale, schedule_type="polynomial", afs=True)
    found = round_trip(import_solver(tmp_path / "start.npz", Settings(model="cifar10")), tmp_path)
    assert isinstance(found.family, EPD) and found.params is not None
    values = found.family.prepare(found.params)
    torch.testing.assert_close(values.r, float64(torch.from_numpy(r)), rtol=1e-12, atol=0.0)
    torch.testing.assert_close(values.weight, float64(torch.from_numpy(weight)), rtol=1e-12, atol=0.0)
    torch.testing.assert_close(values.scale_time, float64(torch.from_numpy(scale)), rtol=1e-12, atol=0.0)
    assert found.family.afs and bool((values.scale_dir == 1).all())


AYS_SD15 = [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]
AYS_SIGMAS = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152]


def test_timesteps_and_levels_of_ays_are_the_same_schedule(tmp_path: Path) -> None:
    (tmp_path / "timesteps.txt").write_text(", ".join(map(str, AYS_SD15)))
    (tmp_path / "levels.json").write_text(json.dumps({"sigmas": [*AYS_SIGMAS, 0.0, 0.0]}))
    options: dict[str, Any] = {"solver": "dpmpp", "order": 2, "model": "sd15"}
    grids = []
    for name in ("timesteps.txt", "levels.json"):
        found = round_trip(import_solver(tmp_path / name, Settings(**options)), tmp_path)
        assert found.family is not None and found.program.nfe == 10
        grids.append(found.family.grid)
    assert grids[0] == pytest.approx(grids[1], rel=0.02)


def test_indices_of_oss_and_flow_times_are_read(tmp_path: Path) -> None:
    (tmp_path / "oss.json").write_text("[0, 12, 40, 90, 150, 200]")
    found = round_trip(import_solver(tmp_path / "oss.json", Settings(nodes=200)), tmp_path)
    assert found.family is not None and found.family.grid == (1.0, 0.75, 0.45, 0.2, 0.06, 0.0)
    (tmp_path / "flow.txt").write_text("1\n0.75 # first\n0.45\n")
    again = import_solver(tmp_path / "flow.txt")
    assert again.family is not None and again.family.grid == (1.0, 0.75, 0.45, 0.0)
    assert again.family.path.name == "flow" and any("euler" in remark for remark in again.remarks)
