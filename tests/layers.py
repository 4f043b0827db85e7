#!/usr/bin/env python3
"""Fail when a module imports from a layer above its own, from a folder beside its own, or in a circle.

    python layers.py [REPOSITORY]            # default: the working folder; standard library only

Every import counts, wherever it stands (at the top, inside a function, under TYPE_CHECKING). `from package import name`
is an import of `package.name` where that is a module, otherwise of `package`. The rules are the tables below.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

PACKAGE = "solverdistill"

# Lowest layer first. Folders of one layer do not import each other; within a folder only circles are refused.
LAYERS: list[tuple[str, ...]] = [
    ("version",),
    ("support", "zoo"),  # files, processes, pickles, checks; the shipped solver files
    ("noise", "networks"),  # levels, paths, grids; bare architectures
    ("programs",),  # the table: record, play, merge, write to a file
    ("denoisers",),  # the protocol of a network, wrappers, guidance
    ("families", "teachers"),  # solvers; frozen networks
    ("references",),  # seeds -> trajectories, cached and served
    ("objectives",),  # distances and losses
    ("fits",),  # how params move
    ("consumers", "importers", "evaluation"),
    ("training",),  # configuration -> run
    ("commands",),  # argparse and hydra.main, nothing else
    ("__main__", "configs"),
]
FACADE = ""  # solverdistill/__init__.py re-exports the public names and is imported by nothing inside
# Frameworks and the only places (prefixes below the package) that may name them.
FRAMEWORKS: dict[str, tuple[str, ...]] = {
    "lightning": ("fits.gradient", "references.datamodule", "training", "commands"),
    "hydra": ("training", "commands"),
    "omegaconf": ("training", "commands"),
    "diffusers": ("consumers.diffusers", "teachers.diffusers"),
    "transformers": ("teachers.diffusers",),
    "huggingface_hub": ("consumers.hub", "teachers.diffusers"),
}
# Of these, what is imported where it is used, save for the modules named here: a class of that library is made there.
LAZY: dict[str, tuple[str, ...]] = {"diffusers": ("consumers.diffusers",), "transformers": (), "huggingface_hub": ()}
# Modules behind the facade's public names, loaded by everybody who plays a solver, load none of these at import.
HEAVY = {*FRAMEWORKS, "wandb", "torchmetrics", "torchvision", "matplotlib", "safetensors", "scipy", "yaml", "rich"}


def find_modules(root: Path) -> dict[str, Path]:
    """Every module below the package by its name without the package: '' is the package itself."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = list(path.relative_to(root / PACKAGE).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


Found = list[tuple[int, str, bool]]  # line, name, at import time


def read_imports(path: Path, module: str, modules: dict[str, Path]) -> tuple[Found, Found]:
    """Imports inside the package, and of foreign ones."""
    inside: Found = []
    outside: Found = []

    def visit(node: ast.AST, eager: bool) -> None:
        for child in ast.iter_child_nodes(node):
            here = eager and not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                here = False
            if isinstance(child, ast.Import):
                names = [(alias.name, None) for alias in child.names]
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    own = f"{PACKAGE}.{module}".rstrip(".").split(".")
                    own = own if path.name == "__init__.py" else own[:-1]
                    base = ".".join([*own[: len(own) - child.level + 1], *([child.module] if child.module else [])])
                names = [(base, alias.name) for alias in child.names]
            else:
                names = []
            for base, name in names:
                if base.split(".")[0] != PACKAGE:
                    outside.append((child.lineno, base.split(".")[0], here))
                    continue
                below = base[len(PACKAGE) + 1 :]
                full = f"{below}.{name}".lstrip(".") if name else below
                target = full if full in modules else below
                if target not in modules:
                    raise SystemExit(f"{path}:{child.lineno} imports {base}, which does not exist")
                if target != module:
                    inside.append((child.lineno, target, here))
            visit(child, here)

    visit(ast.parse(path.read_text(encoding="utf-8")), True)
    return inside, outside


def rank_of(module: str) -> int:
    folder = module.split(".")[0]
    for rank, folders in enumerate(LAYERS):
        if folder in folders:
            return rank
    raise SystemExit(f"{PACKAGE}/{folder} has no layer: give it one in {Path(__file__).name}")


def find_circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one module (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    circles: list[list[str]] = []

    def walk(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(edges.get(node, ())):
            if other not in index:
                walk(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            circle = []
            while True:
                circle.append(stack.pop())
                if circle[-1] == node:
                    break
            if len(circle) > 1:
                circles.append(sorted(circle))

    sys.setrecursionlimit(10_000)
    for node in sorted(edges):
        if node not in index:
            walk(node)
    return circles


def find_loaded(names: set[str], eager: dict[str, set[str]]) -> set[str]:
    """What importing some modules loads: their imports at import time, and the __init__ of every parent."""
    loaded: set[str] = set()
    waiting = sorted(names)
    while waiting:
        module = waiting.pop()
        if module not in loaded:
            loaded.add(module)
            parts = module.split(".")
            waiting += [".".join(parts[:k]) for k in range(1, len(parts))] + sorted(eager.get(module, ()))
    return loaded


def check(root: Path) -> list[str]:
    modules = find_modules(root)
    if not modules:
        return [f"{root / PACKAGE} holds no modules"]
    problems: list[str] = []
    edges: dict[str, set[str]] = {}
    eager: dict[str, set[str]] = {}
    heavy: dict[str, set[str]] = {}
    for module, path in modules.items():
        inside, outside = read_imports(path, module, modules)
        edges[module] = {target for _, target, _ in inside}
        eager[module] = {target for _, target, now in inside if now}
        heavy[module] = {name for _, name, now in outside if now and name in HEAVY}
        where = path.relative_to(root)
        for line, target, _ in inside:
            if module == FACADE:
                continue
            if target == FACADE:
                problems.append(f"{where}:{line} imports the facade {PACKAGE}; name the module that defines it")
                continue
            own, other = rank_of(module), rank_of(target)
            if other > own:
                problems.append(f"{where}:{line} imports {target}, which lies above it")
            elif other == own and module.split(".")[0] != target.split(".")[0]:
                problems.append(f"{where}:{line} imports {target}, a folder beside its own")
        for line, name, now in outside:
            allowed = FRAMEWORKS.get(name)
            if allowed and not any(module == prefix or module.startswith(prefix + ".") for prefix in allowed):
                problems.append(f"{where}:{line} imports {name}, which only {', '.join(allowed)} may")
            elif now and name in LAZY and module not in LAZY[name]:
                problems.append(f"{where}:{line} imports {name} at its top; import it where it is used")
    for circle in find_circles(edges):
        problems.append("circle: " + " <-> ".join(circle))
    # What the public names load: the modules behind them, which the facade names for type checkers and imports when
    # they are asked for.
    for module in sorted(find_loaded(edges[FACADE], eager)):
        for name in sorted(heavy.get(module, ())):
            problems.append(f"a public name of {PACKAGE} loads {name}, through {module or PACKAGE}")
    loose = [name for name in modules if name and "." not in name and modules[name].name != "__init__.py"]
    for name in sorted(set(loose) - {"version", "__main__"}):
        problems.append(f"{PACKAGE}/{name}.py lies in the root; every module has a folder")
    return problems


if __name__ == "__main__":
    found = check(Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve())
    for problem in found:
        print(problem)
    print(f"{len(found)} problem(s)" if found else "layers hold")
    sys.exit(1 if found else 0)
