"""Published coefficient files of other projects, and samplers that are there as code -> solver files.

`import_solver` tells by its content what a file is. Nothing in it is executed: pickles are read through a short list of
names, torch files with `weights_only=True`, Python source by its syntax tree. `probe` takes the sampler itself and runs
it, on one-hot vectors.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from solverdistill.importers import amed, dyweight, epd, gas, ld3, neuralsolver, steplists
from solverdistill.importers.imported import Imported, Settings
from solverdistill.importers.predictor_files import Predictor, predictor_of_json, predictor_of_pickle, read_json
from solverdistill.importers.probing import probe
from solverdistill.support.limits import is_archive, open_archive
from solverdistill.support.pickles import file_kind, read_torch

__all__ = ["FORMATS", "Imported", "Settings", "import_solver", "probe"]

FORMATS = {
    "EPD": "pickle or JSON table of an EPD_predictor, or .npz of effective values",
    "AdaSDE": "pickle of an adasde_predictor (its deterministic part)",
    "AMED": "pickle of an AMED_predictor (mean coefficients)",
    "DyWeight": "pickle or JSON table of a DyWeight_predictor, or .pt of its FLUX variant",
    "GAS": ".pt of a GS or GAS student",
    "LD3": ".pt with params1, params2 and best_t_steps",
    "NeuralSolver (DSS)": "its Python source or JSON, with timedeltas and coeffs",
    "AYS, OSS, GITS": "text or JSON list of noise levels, timesteps or indices",
}
PREDICTORS: dict[str, Callable[[str | os.PathLike[str], Predictor, Settings], Imported]] = {
    "EPD_predictor": epd.import_epd,
    "adasde_predictor": epd.import_adasde,
    "AMED_predictor": amed.import_amed,
    "DyWeight_predictor": dyweight.import_dyweight,
}


def import_solver(path: str | os.PathLike[str], settings: Settings | None = None) -> Imported:
    """Read a published coefficient file of any known format.

    Args:
        path: The file.
        settings: What it leaves out.
    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is none of the formats (the message lists what was looked for), is damaged, or leaves out
            something that `settings` does not say either.
    """
    settings = settings or Settings()
    if not Path(path).is_file():
        raise FileNotFoundError(f"file {path} does not exist")
    kind = _kind(path)
    found = None
    if kind == "arrays":
        found = epd.import_epd_arrays(path, settings)
    elif kind == "pickle":
        predictor = predictor_of_pickle(path)
        found = None if predictor is None else PREDICTORS[predictor.class_name](path, predictor, settings)
    elif kind in ("torch", "torch-legacy"):
        found = _import_torch(path, read_torch(path), settings)
    elif kind == "text":
        found = _import_text(path, settings)
    if found is None:
        looked_for = "; ".join(f"{name}: {what}" for name, what in FORMATS.items())
        raise ValueError(f"file {path} is none of the formats that can be imported ({looked_for})")
    return found


def _kind(path: str | os.PathLike[str]) -> str:
    """ "arrays", "pickle", "torch", "torch-legacy", "safetensors" or "text"."""
    if is_archive(path):
        with open_archive(path) as archive:
            if any(name.endswith(".npy") for name in archive.namelist()):
                return "arrays"
    try:
        return file_kind(path)
    except ValueError:
        return "text"


def _import_torch(path: str | os.PathLike[str], document: Any, settings: Settings) -> Imported | None:
    if isinstance(document, dict) and all(name in document for name in ld3.KEYS):
        return ld3.import_ld3(path, document, settings)
    if isinstance(document, dict) and all(name in document for name in dyweight.FLUX_KEYS):
        return dyweight.import_flux(path, document, settings)
    tensors = gas.tensors_of(document)
    return None if tensors is None else gas.import_gas(path, tensors, settings)


def _import_text(path: str | os.PathLike[str], settings: Settings) -> Imported | None:
    document = read_json(path)
    if isinstance(document, dict) and str(document.get("format", "")).startswith("solverdistill/"):
        raise ValueError(f"file {path} is a solver file already")
    predictor = predictor_of_json(path, document)
    if predictor is not None:
        return PREDICTORS[predictor.class_name](path, predictor, settings)
    tables = neuralsolver.tables_of_json(document) or neuralsolver.tables_of_source(path)
    if tables:
        return neuralsolver.import_dss(path, tables, settings)
    numbers = steplists.numbers_of(path)
    return None if numbers is None else steplists.import_list(path, numbers, settings)
