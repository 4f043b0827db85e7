"""Make the solver files of the zoo from the published numbers in tests/goldens.

    python scripts/make_zoo.py                      # into solverdistill/zoo/solvers
    python scripts/make_zoo.py --out FOLDER

Published results are those of the papers' own tables unless their reference says otherwise; nothing was measured again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from solverdistill.importers import Imported, Settings, import_solver

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "tests" / "goldens" / "published"
DSS = ROOT / "tests" / "goldens" / "dss_bespoke_dode"

# FID of 50,000 samples by model and depth (the papers' "NFE"): EPD, EPD plug-in. EPD paper, Table 1.
EPD_FID = {
    "cifar10": {3: (10.40, 10.54), 5: (4.33, 4.47), 7: (2.82, 3.27), 9: (2.49, 2.42)},
    "ffhq": {3: (21.74, 19.02), 5: (7.84, 7.97), 7: (4.81, 5.09), 9: (3.82, 3.53)},
    "imagenet64": {3: (18.28, 19.89), 5: (6.35, 8.17), 7: (5.26, 4.81), 9: (4.27, 4.02)},
    "lsun_bedroom_ldm": {3: (13.21, 14.12), 5: (7.52, 8.26), 7: (5.97, 5.24), 9: (5.01, 4.51)},
}
EPD_TABLE = "Zhu et al., ICCV 2025, Table 1"
LSUN_CAUTION = "the paper sets its LSUN rows beside baselines of a pixel-space model; these tables are latent ones"
RL_SCORES = {"sd15": ("HPSv2.1", 0.2482), "sd3-512": ("HPSv2.1", 0.2742), "sd3-1024": ("HPSv2.1", 0.2823)}
DYWEIGHT_FID = {
    ("cifar10", 3): (8.16, "base of SpanLift, arXiv 2606.08672, abstract"),
    ("cifar10", 5): (3.02, "Zhao et al. 2026, as quoted by third parties"),
}
SKIPPED = ("00002-cifar-nfe4", "00039-mscoco-nfe20")  # a second table of its kind; a schedule that its model has not
DSS_FID = {  # FID of 50,000 samples at 5 to 10 evaluations
    "flowdcn": ([5.10, 3.41, 2.73, 2.60, 2.46, 2.35], "on FlowDCN-XL/2 256x256, guidance 1.375"),
    "sit": ([5.65, 3.46, 2.86, 2.68, 2.58, 2.43], "on SiT-XL/2 256x256, guidance 1.375"),
    "dit": ([7.40, 3.94, 2.79, 2.51, 2.37, 2.33], "on DiT-XL/2 256x256, guidance 1.5 on three channels"),
}
DSS_PAPER = "Wang et al., ICML 2025"
AYS_PAPER = "Sabour et al., ICML 2024, arXiv 2404.14507"
OSS_PAPER = "Pei et al., 2025, arXiv 2503.21774"
AYS = {
    "sd15": [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.0],
    "sdxl": [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.0],
    "svd": [700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.0],
}
OSS = {
    "flux": [0.9968, 0.9886, 0.9819, 0.975, 0.966, 0.9471, 0.9158, 0.8287, 0.5512, 0.2808, 0.0],
    "wan": [1, 0.997, 0.995, 0.993, 0.991, 0.989, 0.987, 0.985, 0.98, 0.975]
    + [0.973, 0.968, 0.96, 0.946, 0.927, 0.902, 0.864, 0.776, 0.539, 0.208, 0.0],
}
Entry = tuple[str, Imported]


def result(metric: str, value: float, reference: str) -> dict[str, Any]:
    """One published result."""
    return {"metric": metric, "value": value, "reference": reference}


def finished(found: Imported, results: Sequence[dict[str, Any]], notes: Sequence[str] = (), **facts: Any) -> Imported:
    """An imported solver with its published results and the facts of its original file."""
    imported = {**found.provenance["imported"], **facts}
    imported["remarks"] = [*imported["remarks"], *notes]
    imported = {name: value for name, value in imported.items() if value != ""}
    return replace(found, provenance={**found.provenance, "imported": imported, "published": list(results)})


def read(folder: Path, document: Any, settings: Settings | None = None) -> Imported:
    """Import a JSON document."""
    path = folder / "table.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return import_solver(path, settings)


def tables(name: str) -> list[dict[str, Any]]:
    """Published tables of a method."""
    return json.loads((PUBLISHED / f"{name}.json").read_text(encoding="utf-8"))["tables"]


def original(entry: dict[str, Any]) -> dict[str, str]:
    """Name and checksum of the file that a table was read from."""
    return {"file": entry["source"], "sha256": entry["sha256"]}


def epd(folder: Path) -> Iterator[Entry]:
    """Pixel and latent tables, their plug-ins, and the reward-tuned ones."""
    for entry in tables("epd"):
        kind = Path(entry["source"]).stem
        tuned = entry["class_name"] == "EPD_predictor" and "backend" in entry["init_kwargs"]
        if tuned and not kind.endswith("-best"):
            continue
        found = read(folder, entry)
        assert found.family is not None
        if tuned:
            name = kind.removesuffix("-best")
            scores = [result(*RL_SCORES[name], "EPD-Solver++ README")] if name in RL_SCORES else []
            yield f"epd_rl-{name}-nfe{found.program.nfe}", finished(found, scores, **original(entry))
            continue
        model, plugin = entry["init_kwargs"]["dataset_name"], found.family.name == "epd_ipndm"
        scores = [result("FID", EPD_FID[model][found.program.depth][plugin], EPD_TABLE)]
        notes = [LSUN_CAUTION] if model == "lsun_bedroom_ldm" else []
        yield f"{found.family.name}-{model}-nfe{found.program.nfe}", finished(found, scores, notes, **original(entry))


def dyweight(folder: Path) -> Iterator[Entry]:
    """Pixel and latent tables and those of FLUX."""
    for entry in tables("dyweight"):
        if any(part in entry["source"] for part in SKIPPED):
            continue
        found = read(folder, entry)
        model = str(entry["loss"]["dataset_name"]).replace("ms_coco", "sd15")
        known = DYWEIGHT_FID.get((model, found.program.nfe))
        scores = [result("FID", *known)] if known else []
        yield f"dyweight-{model}-nfe{found.program.nfe}", finished(found, scores, **original(entry))
    for entry in tables("dyweight_flux"):
        document = {name: torch.tensor(entry[name]) for name in ("dyweight_weights_raw", "dyweight_t_scales")}
        torch.save({**document, "window_size": entry["window_size"]}, folder / "flux.pt")
        found = finished(import_solver(folder / "flux.pt"), [], **original(entry))
        yield f"dyweight-flux-nfe{found.program.nfe}", found


def dss(folder: Path) -> Iterator[Entry]:
    """The tables searched on FlowDCN-B/2, SiT-XL/2 and DiT-XL/2."""
    for prefix, model, file in (("dcn_", "flowdcn", "fm"), ("sit_", "sit", "fm"), ("N", "dit", "vp")):
        with np.load(DSS / f"dss_{file}_published.npz") as arrays:
            for steps in sorted(int(key[len(prefix) : -3]) for key in arrays.files if _is_steps(key, prefix)):
                key = f"{prefix}{steps}"
                document = {"timedeltas": arrays[f"{key}_dt"].tolist(), "coeffs": arrays[f"{key}_coeffs"].tolist()}
                found = read(folder, document, Settings(model=model))
                values, where = DSS_FID[model]
                scores = [result("FID", values[steps - 5], f"{DSS_PAPER}, {where}")] if steps <= 10 else []
                notes = ["searched without guidance, evaluated with it"]
                facts = {"file": "a table of the paper and its code", "sha256": ""}
                yield f"dss-{model}-nfe{steps}", finished(found, scores, notes, **facts)


def _is_steps(key: str, prefix: str) -> bool:
    return key.startswith(prefix) and key.endswith("_dt") and key[len(prefix) : -3].isdigit()


def schedules(folder: Path) -> Iterator[Entry]:
    """Published noise levels under a classical solver."""
    for method, paper, levels, solver, order in (
        ("ays", AYS_PAPER, AYS, "dpmpp", 2),
        ("oss", OSS_PAPER, OSS, "euler", None),
    ):
        for model, numbers in levels.items():
            found = read(folder, numbers, Settings(model=model, solver=solver, order=order))
            words = "DPM-Solver++(2M)" if method == "ays" else "Euler"
            notes = [f"published noise levels under {words}"]
            found = finished(found, [], notes, file="a list in the paper", sha256="")
            found.provenance["source"] = paper
            found.provenance["imported"] = {**found.provenance["imported"], "paper": paper}
            del found.provenance["imported"]["repository"]
            yield f"{method}-{model}-nfe{found.program.nfe}", found


def make(out: Path) -> list[str]:
    """Write all files and return their names."""
    out.mkdir(parents=True, exist_ok=True)
    written = []
    with tempfile.TemporaryDirectory() as folder:
        for source in (epd, dyweight, dss, schedules):
            for name, found in source(Path(folder)):
                assert name not in written, name
                found.save(out / f"{name}.json")
                written.append(name)
    return written


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=ROOT / "solverdistill" / "zoo" / "solvers", type=Path)
    print(f"{len(make(parser.parse_args().out))} solvers")
