"""The evaluation of solver files: its numbers against `compare`, its report, what it refuses."""

from __future__ import annotations

import csv
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from solverdistill import Grid, families, save_solver
from solverdistill.denoisers.wrappers import Guided
from solverdistill.evaluation import Candidate, compare
from solverdistill.evaluation.end_points import EndPoints
from solverdistill.evaluation.evaluate import Evaluation, evaluate
from solverdistill.evaluation.plan import EvaluationPlan
from solverdistill.evaluation.reports.publishing import publish
from solverdistill.evaluation.reports.table_layout import by_nfe
from solverdistill.references.solving import Reference
from solverdistill.references.targets import Source, TargetSettings, make_targets
from solverdistill.teachers.mixture import Mixture
from tests.commands import run_here

SAMPLES = 70
REFERENCE = Reference(steps=12)


class Averages(nn.Module):
    num_features, name = 3, "averages"

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x.mean((1, 2, 3)), x[..., 4:].mean((1, 2, 3)), x.std((1, 2, 3))], dim=1)


def images_teacher() -> Mixture:
    generator = torch.Generator().manual_seed(0)
    means = (torch.rand(4, 1, 8, 8, generator=generator, dtype=torch.float64) * 2 - 1).round()
    return Mixture(means, [1.0] * 4, [0.1] * 4, labels=[0, 0, 1, 1], name="tiles")


def epd(nfe: int) -> Any:
    """EPD with an analytical first step, at nfe 5, 8, ..."""
    return families.build("epd", Grid(steps=(nfe + 1) // 3), afs=True)


def save(folder: Path, nfe: int = 5, guidance: float = 1.0, teacher: Mixture | None = None) -> str:
    """A solver file as a run leaves it."""
    teacher = teacher or images_teacher()
    family = epd(nfe)
    facts = {"teacher": {"name": teacher.name, "fingerprint": teacher.fingerprint()}, "guidance": guidance}
    params = family.init(0)
    folder.mkdir(exist_ok=True)
    file = folder / "solver.json"
    return str(save_solver(file, family.program(params), family.hyperparameters(), params, facts))


def plan(solvers: list[str], **changes: Any) -> EvaluationPlan:
    options: dict[str, Any] = {"baselines": ["ipndm", "ddim"], "samples": SAMPLES, "batch_size": 16, "subset": 50}
    return EvaluationPlan(**{**options, "solvers": solvers, "extractor": Averages(), "real": "reference", **changes})


def targets(cache: Path | None = None) -> TargetSettings:
    return TargetSettings(REFERENCE, cache=None if cache is None else str(cache))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    folder = tmp_path_factory.mktemp("solvers")
    files = [save(folder / "a"), save(folder / "b", nfe=8)]
    return evaluate(plan(files, guidance=2.0), images_teacher(), targets())


def test_rows_are_those_of_compare(found: Evaluation) -> None:
    teacher = images_teacher()
    guided = Guided(teacher, 2.0, teacher.null_cond)
    data = make_targets(TargetSettings(REFERENCE, test_samples=SAMPLES), "test", teacher, guided).batch
    rows = {(m.row.label, m.row.nfe): m.row for m in found.measured}
    classical = families.build("euler", Grid("quadratic", steps=5))
    student = epd(5).program(epd(5).init(0))
    candidates = [Candidate.of("epd", student), Candidate.of("Euler", classical.program())]
    for candidate, key in zip(candidates, [("epd", 5), ("Euler quadratic", 5)], strict=True):
        expected = compare([candidate], guided, data.noise, data.cond, data.end, 64)[0]
        row = rows[key]
        for name in ("rmse_mean", "rmse_median", "rmse_p95", "psnr", "psnr_p05", "ssim", "ssim_median"):
            assert getattr(row, name) == pytest.approx(getattr(expected, name), rel=1e-5), name
        assert row.images == SAMPLES and row.depth == candidate.depth


def test_classical_solvers_match_every_nfe_and_depth(found: Evaluation) -> None:
    students = {(m.row.nfe, m.row.depth) for m in found.measured if m.row.kind == "student"}
    classical = {m.row.nfe for m in found.measured if m.row.kind == "classical"}
    assert classical == {cost for pair in students for cost in pair} and len(students) == 2
    assert found.names == {"FD": "FD(averages)", "KD": "KD(averages)"}
    reference = found.measured[-1].row
    assert reference.kind == "reference" and reference.rmse_mean == 0 and reference.frechet is None
    assert all(m.row.frechet is not None and m.row.recall is not None for m in found.measured[:-1])
    assert all(m.images.shape == (8, 1, 8, 8) for m in found.measured)


def test_the_result_depends_on_neither_batches_nor_cache(tmp_path: Path) -> None:
    files = [save(tmp_path / "a")]
    results = []
    for batch_size, cache in ((16, None), (50, tmp_path / "cache"), (64, tmp_path / "cache")):
        results.append(evaluate(plan(files, batch_size=batch_size), images_teacher(), targets(cache)))
    shards = sorted(path.name for path in (tmp_path / "cache").glob("tiles-test-ends-*/shard-*.safetensors"))
    assert shards == ["shard-00000000.safetensors", "shard-00000001.safetensors"]
    for other in results[1:]:
        for a, b in zip(results[0].measured, other.measured, strict=True):
            torch.testing.assert_close(a.images, b.images, rtol=0, atol=1e-5)
            for name in ("rmse_mean", "rmse_p95", "ssim", "frechet", "kernel"):
                value = getattr(a.row, name)
                assert getattr(b.row, name) == (value if value is None else pytest.approx(value, rel=1e-4, abs=1e-6))


def test_end_points_are_those_of_the_targets() -> None:
    teacher = images_teacher()
    whole = make_targets(TargetSettings(REFERENCE, test_samples=SAMPLES), "test", teacher, teacher).batch
    ends = EndPoints(Source(targets(), "test", teacher, teacher), SAMPLES)
    ends.prepare(lambda done: None, 16)
    noise, cond, end = ends.take(60, 70)
    assert torch.equal(noise, whole.noise[60:]) and torch.equal(end, whole.end[60:])
    assert torch.equal(cond, whole.cond[60:])


class Structure(HTMLParser):
    """Collects the tags and the sources of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[str] = []
        self.counts: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag == "img":
            self.images.append(dict(attrs)["src"] or "")
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_stands_alone(found: Evaluation, tmp_path: Path) -> None:
    files = publish(found, tmp_path, 'Solvers for "tiles" & <more>')
    page = files["html"].read_text("utf-8")
    structure = Structure()
    structure.feed(page)
    assert structure.open == [] and len(structure.images) == 3 and "script" not in structure.counts
    assert all(image.startswith("data:image/png;base64,iVBORw0KGgo") for image in structure.images)
    assert "http" not in page and "<more>" not in page and "&lt;more&gt;" in page
    assert structure.counts["tbody"] == len({m.row.nfe for m in found.measured})
    for measured in found.measured:
        assert f"<td>{measured.row.label}</td><td>{measured.row.nfe or '-'}</td>" in page.replace(' class="best"', "")
    assert "FD(averages)" in page and re.search(r"\bFID\b", page) is None
    with files["csv"].open(encoding="utf-8", newline="") as stream:
        written = list(csv.DictReader(stream))
    assert [row["label"] for row in written] == [m.row.label for m in found.measured]
    assert [float(row["rmse_mean"]) for row in written] == [m.row.rmse_mean for m in found.measured]
    lines = [line for line in files["markdown"].read_text("utf-8").splitlines() if line.startswith("|")]
    assert len(lines) == len(found.measured) + 2 and len({line.count("|") for line in lines}) == 1


def test_the_best_of_every_nfe_is_marked(found: Evaluation) -> None:
    table = by_nfe([m.row for m in found.measured])
    place, groups = [column.field for column in table.columns].index("rmse_mean"), table.groups
    assert all(lines[0].cells[place].best for title, lines in groups.items() if title != "reference")
    assert sum(cell.best for cell in groups["reference"][0].cells) == 0


def test_mistakes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = save(tmp_path / "a"), save(tmp_path / "b", guidance=2.0)
    for options, message in (
        ({"solvers": [a, b]}, r"fitted at guidance \[1.0, 2.0\]; set guidance"),
        ({"solvers": [a], "baseline_shifts": [-1]}, "baseline_shifts must be a list of numbers of at least 0, such as"),
        ({"solvers": [a], "baseline_shifts": []}, r"such as \[0,1,2\], not \[\]"),
        ({"solvers": [a], "baselines": ["epd"]}, "baseline 'epd' is no classical solver; known: euler"),
        ({"solvers": [], "nfe": None}, "nothing to evaluate"),
        ({"solvers": [a], "real": "auto"}, "tiles brings no real images"),
        ({"solvers": [a], "backend": "fidelity"}, "known: cleanfid, torchmetrics"),
        ({"solvers": [a], "data_range": [1, 0]}, "two ascending numbers"),
        ({"solvers": [a], "samples": 0}, "samples must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(plan(**options), images_teacher(), targets())
    with pytest.raises(FileNotFoundError, match=r"LPIPS with vgg needs vgg16-397923af.pth .*: download https://"):
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        evaluate(plan([a], lpips="vgg"), images_teacher(), targets())
    with pytest.raises(FileNotFoundError, match="do not exist"):
        evaluate(plan([a], real=str(tmp_path / "none")), images_teacher(), targets())


def test_a_solver_of_another_teacher_is_told(tmp_path: Path) -> None:
    other = Mixture(torch.zeros(1, 1, 8, 8), [1.0], [0.5], name="other")
    twins = [save(tmp_path / "a", teacher=other), save(tmp_path / "b")]
    small = plan(twins, samples=3, extractor=None, baselines=[])
    warnings = evaluate(small, images_teacher(), targets()).warnings
    assert len(warnings) == 1 and "was fitted to another teacher, other" in warnings[0]
    labels = [m.row.label for m in evaluate(small, images_teacher(), targets()).measured]
    assert labels == ["epd (a)", "epd (b)", "reference"]


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    ran = run_here(tmp_path, "scripts/evaluate.py", "model=mixture", "solvers=[none.json]", "hydra.run.dir=out")
    assert ran.returncode == 2 and not (tmp_path / "out").exists()
    assert ran.stderr.startswith("error: solver file none.json cannot be read") and ran.stderr.count("\n") == 1
