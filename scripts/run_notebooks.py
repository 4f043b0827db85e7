#!/usr/bin/env python3
"""Run the notebooks of the documentation and write what they show into them.

    python scripts/run_notebooks.py [NOTEBOOK ...]     # default: all of docs/notebooks

Each runs in an empty folder. Progress bars are left out: without a running notebook they are empty boxes.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "notebooks"
WIDGET = "application/vnd.jupyter.widget-view+json"


def run(path: Path) -> None:
    """Execute one notebook and write it back."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(notebook, kernel_name="python3", resources=resources, record_timing=False).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if is_shown(output)]
    notebook.metadata.pop("widgets", None)
    notebook.metadata.language_info = {"name": "python"}  # not which one ran it
    nbformat.write(notebook, path)


def is_shown(output: nbformat.NotebookNode) -> bool:
    """Whether an output is more than a progress bar or an empty line."""
    data = output.get("data")
    return data is None or (WIDGET not in data and bool(data["text/plain"].strip()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Run the notebooks and write what they show into them.")
    parser.add_argument("notebooks", nargs="*", type=Path, default=sorted(FOLDER.glob("*.ipynb")))
    for path in parser.parse_args().notebooks:
        run(path)
        print(f"{path.name}: {path.stat().st_size:,} bytes")
