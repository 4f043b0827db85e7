"""The loaders that are fuzzed, each with good files to begin with and with what is done to a file after it is read."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file

from solverdistill import families, read_solver, save_solver, zoo
from solverdistill.consumers.diffusers_config import scheduler_config
from solverdistill.importers import Settings, import_solver
from solverdistill.networks.dit import DiT
from solverdistill.networks.preconditioning import Preconditioned
from solverdistill.networks.song_unet import SongUNet
from solverdistill.references.shard_cache import ShardCache
from solverdistill.teachers import diffusers as pipelines
from solverdistill.teachers import nvlabs
from solverdistill.teachers.checkpoints import loading
from solverdistill.teachers.checkpoints.cards import Card
from solverdistill.teachers.diffusers.prompts import read_prompts
from solverdistill.teachers.edm import load_song_unet
from tests import pipeline_folders
from tests.pickle_making import RECONSTRUCT, as_persistent, dumps, mentioned, persistent, write_checkpoint

PUBLISHED = Path(__file__).resolve().parents[2] / "tests" / "goldens" / "published"
EDM: dict[str, Any] = {"img_resolution": 8, "in_channels": 1, "out_channels": 1, "label_dim": 2, "model_channels": 8}
EDM |= {"channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}
FACTS: dict[str, Any] = {"name": "tiny", "url": "https://example.org/tiny", "licence": "MIT", "source": "a fuzzer"}
RANGE = {"preconditioning": "edm", "noise_range": [80.0, 0.002]}
EDM_CARD = Card(**FACTS, config={**RANGE, "network": "SongUNet", "arguments": EDM})
DIT: dict[str, Any] = {"input_size": 8, "hidden_size": 16, "depth": 1, "num_heads": 2, "num_classes": 3}
DIT_CARD = Card(**FACTS, config={"network": "DiT", "arguments": DIT})


class Target(NamedTuple):
    """A loader.

    Attributes:
        make: Writes good files into a folder and gives them.
        load: Loads a file and uses what it holds.
    """

    make: Callable[[Path], list[Path]]
    load: Callable[[Path], object]


def _written(loaded: Any, save: Callable[[Path], object]) -> Any:
    """Write what was read again: what loads can be saved."""
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder) / "solver.json")
    return loaded


def _solver_files(folder: Path) -> list[Path]:
    names = [name for name in zoo.names() if name.endswith(("-nfe4", "-nfe5", "-nfe6"))][:3]
    own = save_solver(folder / "own.json", families.build("heun", [80.0, 3.0, 0.002]).program(), {"name": "heun"})
    return [own, *(Path(shutil.copy(zoo.path_of(name), folder)) for name in names)]


def _load_solver(path: Path) -> Any:
    file = read_solver(path)
    return _written(file, lambda to: save_solver(to, file.program, file.family, file.params, file.provenance))


def _import(path: Path) -> Any:
    """Import with settings that most files need, whatever the file is."""
    found = import_solver(path, Settings(model="cifar10", solver="ipndm", order=3))
    return _written(found, found.save)


def _entries() -> dict[str, dict[str, Any]]:
    return {
        name: json.loads((PUBLISHED / f"{name}.json").read_text())["tables"][0]
        for name in ("epd", "adasde", "dyweight")
    }


def _amed() -> tuple[dict[str, Any], torch.nn.Module]:
    sizes = {"enc_layer0": (64, 128), "enc_layer1": (128, 4), "map_layer0": (8, 8), "fc_r": (20, 1)}
    sizes |= {"fc_scale_dir": (20, 1), "fc_scale_time": (20, 1)}
    network = torch.nn.Module()
    for name, size in sizes.items():
        setattr(network, name, torch.nn.Linear(*size))
    said = {"num_steps": 4, "sampler_stu": "amed", "schedule_type": "polynomial", "schedule_rho": 7.0, "afs": True}
    return {**said, "scale_dir": 0.01, "scale_time": 0.2, "dataset_name": "cifar10"}, network


def _pickles(folder: Path) -> list[Path]:
    files = []
    for name, entry in _entries().items():
        network = torch.nn.Module()
        for key, value in entry["parameters"].items():
            network.register_parameter(key, torch.nn.Parameter(torch.tensor(value)))
        for key, value in entry.get("buffers", {}).items():
            network.register_buffer(key, torch.tensor(value))
        said = entry["init_kwargs"]
        record = as_persistent(network, entry["class_name"], said, {})
        loss = persistent("loss", entry["loss"])
        for protocol in (2, 4):
            content = {"model": record, "loss_fn": loss}
            file = folder / f"{name}{protocol}.pkl"
            file.write_bytes(dumps(content, RECONSTRUCT, protocol=protocol))
            files.append(file)
    said, network = _amed()
    content = {"model": as_persistent(network, "AMED_predictor", said, {})}
    (folder / "amed.pkl").write_bytes(
        dumps(lambda: {**content, "f": mentioned("solvers.run")}, RECONSTRUCT, "solvers.run")
    )
    return [*files, folder / "amed.pkl"]


def _tables(folder: Path) -> list[Path]:
    files = []
    for name, entry in _entries().items():
        (folder / f"{name}.json").write_text(json.dumps(entry))
        files.append(folder / f"{name}.json")
    dss = {"step4": {"timedeltas": [0.25] * 4, "coeffs": [[0.0] * 4 for _ in range(4)]}}
    texts = {
        "dss.json": json.dumps(dss),
        "dss.py": f"FM_DATA = {dss!r}\n",
        "levels.txt": "80 20 3 0.5 0.002 # levels\n",
    }
    texts["list.json"] = json.dumps({"sigmas": [80.0, 20.0, 3.0, 0.5, 0.002]})
    for name, text in texts.items():
        (folder / name).write_text(text)
        files.append(folder / name)
    return files


def _torch_files(folder: Path) -> list[Path]:
    gas = [torch.zeros(2), *(torch.zeros(3) for _ in range(7))]
    ld3 = families.build("ld3", [80.0, 20.0, 3.0, 0.002], base="ipndm", order=3)
    timeline = ld3.prepare(params := ld3.init(0))
    times = torch.cat([timeline.s, torch.stack([timeline.told(i).sigma for i in range(4)])])
    flux = {"dyweight_weights_raw": torch.eye(4), "dyweight_t_scales": torch.ones(4), "window_size": 3}
    files = []
    for name, content in {"gas": {"ema": gas}, "ld3": {**params, "best_t_steps": times}, "flux": flux}.items():
        for old in (False, True):
            files.append(folder / f"{name}{'-old' if old else ''}.pt")
            torch.save(content, files[-1], _use_new_zipfile_serialization=not old)
    return files


def _arrays(folder: Path) -> list[Path]:
    values: dict[str, Any] = {
        "r": np.full((3, 2), 0.5),
        "weight": np.full((3, 2), 0.5),
        "scale_dir": np.full((3, 2), 1.01),
    }
    np.savez(folder / "plain.npz", **values)
    np.savez_compressed(folder / "packed.npz", **values, scale_time=np.ones((3, 2)), dataset_name="cifar10")
    return [folder / "plain.npz", folder / "packed.npz"]


def _edm_checkpoints(folder: Path) -> list[Path]:
    net = Preconditioned(SongUNet(**EDM), "edm")
    inner = {**EDM, "class_name": "SongUNet"}
    files = [write_checkpoint(folder / "a.pkl", as_persistent(net, "EDMPrecond", {"img_resolution": 8}, inner))]
    files += [folder / "b.pt", folder / "c.pt", folder / "d.safetensors"]
    torch.save(net.state_dict(), files[1])
    torch.save({"ema": net.state_dict()}, files[2], _use_new_zipfile_serialization=False)
    save_file(net.state_dict(), files[3])
    return files


def _author_checkpoints(folder: Path) -> list[Path]:
    files, state = [folder / "a.pt", folder / "b.safetensors"], DiT(**DIT).state_dict()
    torch.save({"ema": {key: value.half() for key, value in state.items()}, "args": None}, files[0])
    save_file(state, files[1])
    return files


def _song_unets(folder: Path) -> list[Path]:
    config = {"network": EDM, "preconditioning": {"kind": "edm"}}
    net = Preconditioned(SongUNet(**EDM), "edm")
    save_file(net.state_dict(), folder / "a.safetensors", {"config": json.dumps(config)})
    return [folder / "a.safetensors"]


def _pipeline(name: str) -> Target:
    options: dict[str, Any] = {"prompts": ["a cat"]} if name not in ("dit", "ddpm") else {}
    options |= {"latent_size": 8, "text_length": 16} if name == "flux" else {}

    def load(folder: Path) -> Any:
        teacher = getattr(pipelines, name)(str(folder), **options)
        return teacher.decoder.load() if teacher.decoder is not None else teacher

    return Target(lambda folder: [pipeline_folders.PIPELINES[name](folder / name)], load)


def _caches(folder: Path) -> list[Path]:
    _fill(folder / "cache")
    return [folder / "cache"]


def _fill(root: Path) -> dict[str, torch.Tensor]:
    cache = ShardCache(root, "fuzz", {"teacher": "none"}, 4)
    cache.fill([0, 1], lambda shard: {"noise": torch.full((4, 2), float(shard))})
    cache.size()
    rows = cache.take(torch.arange(8), ["noise"])
    if rows["noise"].shape != (8, 2):
        raise AssertionError("the cache gave something else than was put in")
    return rows


def _schedules(folder: Path) -> list[Path]:
    files = []
    for name in ("stable_diffusion", "flux", "pixart"):
        made = pipeline_folders.PIPELINES[name](folder / name) / "scheduler" / "scheduler_config.json"
        files.append(Path(shutil.copy(made, folder / f"{name}.json")))
    return files


def _prompts(folder: Path) -> list[Path]:
    (folder / "a.csv").write_text('number,prompt\n1,"a cat, asleep"\n2,rain\n', encoding="utf-8-sig")
    (folder / "b.txt").write_text("a cat\nein Bär\n", encoding="utf-8")
    return [folder / "a.csv", folder / "b.txt"]


PLAYED = families.build("heun", [0.9, 0.5, 0.1], "flow").program()
TARGETS: dict[str, Target] = {
    "solver": Target(_solver_files, _load_solver),
    "pickle": Target(_pickles, _import),
    "table": Target(_tables, _import),
    "torch": Target(_torch_files, _import),
    "npz": Target(_arrays, _import),
    "edm": Target(_edm_checkpoints, lambda path: nvlabs.load_network(EDM_CARD, path)),
    "authors": Target(_author_checkpoints, lambda path: loading.load_network(DIT_CARD, DIT, path)),
    "own-safetensors": Target(_song_unets, load_song_unet),
    "cache": Target(_caches, _fill),
    "schedule": Target(_schedules, lambda path: scheduler_config(PLAYED, path)),
    "prompts": Target(_prompts, lambda path: read_prompts(str(path))),
    **{
        f"pipeline-{name}": _pipeline(name)
        for name in ("stable_diffusion", "stable_diffusion_3", "flux", "dit", "pixart", "ddpm")
    },
}
