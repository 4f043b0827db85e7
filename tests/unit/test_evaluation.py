"""Evaluation: metrics against their formulas, costs of candidates, tables that can be read back, figures that open."""

from __future__ import annotations

import csv
import io
import math
import struct
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import draw_data
from rich.console import Console
from torch import Tensor, nn

from solverdistill import Grid, families
from solverdistill.denoisers.wrappers import Counted
from solverdistill.evaluation import Candidate, Row, classical_candidates, compare
from solverdistill.evaluation.after_training import EvaluationSettings
from solverdistill.evaluation.candidates import CLASSICAL
from solverdistill.evaluation.lower_starts import SHIFTS, best_from_lower
from solverdistill.evaluation.metrics.feature_spaces import Features
from solverdistill.evaluation.metrics.feature_statistics import FeatureStatistics
from solverdistill.evaluation.metrics.frechet import frechet_distance
from solverdistill.evaluation.metrics.paired_errors import PairedErrors, paired_errors
from solverdistill.evaluation.reports import figures
from solverdistill.evaluation.reports.table_files import write_csv, write_markdown
from solverdistill.evaluation.reports.table_layout import by_nfe, by_role
from solverdistill.evaluation.reports.terminal_table import print_table, terminal_table
from solverdistill.noise.paths import EDM, VP, Flow
from solverdistill.programs.playing import sample
from solverdistill.teachers.mixture import Mixture, toy_mixture


class Identity(nn.Module):
    """Extractor whose features are the values themselves."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


class Classifier(nn.Module):
    """Extractor with a `features` method beside its output, dropout between them, and a name."""

    num_features, name = 3, "toy"

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(6, 3), nn.Dropout(0.5)

    def features(self, x: Tensor) -> Tensor:
        return self.dropout(self.linear(x))

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("the output of a classifier is no feature")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def row(label: str = "a", **changes: Any) -> Row:
    return replace(Row(label, "classical", 4, 4, 0.25, 0.125, 1 / 3, 31.5, 2.5, 0.75), **changes)


def student() -> Candidate:
    family = families.build("epd", Grid(steps=3), afs=True)
    return Candidate.of("EPD", family.program(family.init(0)))


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_paired_errors_are_their_formulas() -> None:
    samples, reference = draw(7, 3, 4, 5), draw(7, 3, 4, 5, seed=1)
    errors = paired_errors(samples, reference)
    mse = torch.stack([((a - b) ** 2).sum() / 60 for a, b in zip(samples, reference, strict=True)])
    torch.testing.assert_close(errors.rmse, mse.sqrt(), rtol=1e-14, atol=0)
    torch.testing.assert_close(errors.psnr, 10 * torch.log10(4 / mse), rtol=1e-7, atol=0)
    rmse, psnr = errors.summary("rmse"), errors.summary("psnr")
    assert rmse is not None and psnr is not None
    assert rmse.mean == pytest.approx(mse.sqrt().mean().item(), rel=1e-14)
    assert rmse.median == pytest.approx(mse.sqrt().sort().values[3].item(), rel=1e-14)
    assert psnr.mean == pytest.approx((10 * torch.log10(4 / mse)).mean().item(), rel=1e-7)


def test_the_95th_percentile_interpolates() -> None:
    errors = PairedErrors(torch.arange(101, dtype=torch.float64), torch.zeros(101))
    assert errors.summary("rmse") == pytest.approx((50.0, 50.0, 95.0))


def test_paired_errors_of_vectors_and_of_equal_images() -> None:
    x = draw(5, 6)
    errors = paired_errors(x, x)
    assert not errors.rmse.any() and errors.psnr.isinf().all()
    with pytest.raises(ValueError, match="one shape"):
        paired_errors(x, x[:, :3])
    with pytest.raises(ValueError, match="one shape"):
        paired_errors(x[:, 0], x[:, 0])


def test_joined_batches_are_the_whole() -> None:
    samples, reference = draw(9, 6), draw(9, 6, seed=1)
    parts = [paired_errors(a, b) for a, b in zip(samples.split(4), reference.split(4), strict=True)]
    torch.testing.assert_close(PairedErrors.join(parts).rmse, paired_errors(samples, reference).rmse)


def statistics(x: Tensor, extractor: nn.Module, batch: int = 64) -> FeatureStatistics:
    features = Features(extractor)
    result = FeatureStatistics(features.num_features)
    for part in x.split(batch):
        result.update(features(part), range(len(part)))
    return result


def frechet(samples: Tensor, real: Tensor, extractor: nn.Module) -> float:
    return frechet_distance(statistics(real, extractor), statistics(samples, extractor))


def test_frechet_distance_of_equal_sets_is_zero() -> None:
    x = draw(200, 1, 2, 2)
    assert frechet(x, x, Identity(4)) == pytest.approx(0, abs=1e-10)


def test_frechet_distance_of_gaussians_is_the_closed_form() -> None:
    """For diagonal covariances: sum (mu - nu)^2 + sum (s - t)^2, with the sample moments made exact by whitening."""
    x = draw(500, 4)
    x = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T
    shift, scale = torch.tensor([[1.0, -2.0, 0.0, 0.5], [1.0, 2.0, 0.5, 3.0]], dtype=torch.float64)
    expected = (shift**2).sum() + ((scale - 1) ** 2).sum()
    assert frechet(x * scale + shift, x, Identity(4)) == pytest.approx(expected.item(), rel=1e-12)


def test_frechet_distance_holds_its_digits_where_features_are_redundant() -> None:
    """In three of six dimensions, turned; clean-fid's and torchmetrics' roots lose half of the digits there."""
    x = draw(500, 3)
    x = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T
    turn = torch.linalg.qr(draw(6, 6, seed=2)).Q[:3]
    scale = torch.tensor([1.5, 1.0, 1e-3], dtype=torch.float64)
    expected = ((scale - 1) ** 2).sum().item()
    assert frechet(x * scale @ turn, x @ turn, Identity(6)) == pytest.approx(expected, rel=1e-10)


def test_frechet_distance_does_not_depend_on_batches_and_is_infinite_for_what_diverged() -> None:
    real, x = draw(50, 6), draw(40, 6, seed=1) + 1
    whole = frechet_distance(statistics(real, Identity(6)), statistics(x, Identity(6)))
    parts = frechet_distance(statistics(real, Identity(6), 16), statistics(x, Identity(6), 13))
    assert parts == pytest.approx(whole, rel=1e-12)
    assert frechet(x.index_fill(0, torch.tensor([3]), math.nan), real, Identity(6)) == math.inf


def test_features_are_taken_in_evaluation_mode() -> None:
    extractor = Classifier()
    x = draw(30, 6)
    assert frechet(x, x, extractor) == pytest.approx(0, abs=1e-10)
    assert extractor.training and extractor.dropout.training


def test_frechet_distance_refuses_what_it_cannot_measure() -> None:
    with pytest.raises(ValueError, match="more than 6 samples, not 6"):
        frechet(draw(20, 6), draw(6, 6), Identity(6))
    with pytest.raises(ValueError, match="more than 6 samples, not 3"):
        frechet(draw(3, 6), draw(20, 6), Identity(6))
    with pytest.raises(ValueError, match="no integer `num_features`"):
        Features(nn.Flatten())


# --- candidates ------------------------------------------------------------------------------------------------------


USUAL = ["euler", "heun", "dpm2", "ipndm", "ipndm_v", "dpmpp", "unipc", "deis"]


@pytest.mark.parametrize("nfe", [1, 2, 5, 8])
@pytest.mark.parametrize(
    ("path", "noise_range", "count"),
    [(EDM(), (80.0, 0.002), 22), (VP(), (1.0, 1e-3), 22), (Flow(), (1.0, 0.0), 12), (Flow(3.0), (0.999, 0.001), 20)],
    ids=["edm", "vp", "flow", "flow-finite"],
)
def test_candidates_cost_exactly_what_was_asked(path: Any, noise_range: Any, count: int, nfe: int) -> None:
    found = classical_candidates(path, noise_range, nfe=nfe, names=USUAL)
    assert len(found.candidates) == count and not found.omitted
    assert len({candidate.label for candidate in found.candidates}) == count
    for candidate in found.candidates:
        program = candidate.program
        assert candidate.nfe == candidate.depth == program.nfe == program.depth == nfe, candidate.label
        assert candidate.kind == "classical"
        last = program.readouts.sigma[-1].item()
        assert last == pytest.approx(path.sigma(noise_range[1]).item(), abs=1e-12), candidate.label
        if "AFS" not in candidate.label:
            level = path.level(noise_range[0])
            assert program.sigma[0].item() == pytest.approx((level.sigma / level.hypot()).item(), rel=1e-12)


def test_heun_takes_an_analytical_first_step_at_odd_nfe_only() -> None:
    labels = {nfe: {c.label for c in classical_candidates(EDM(), (80.0, 0.002), nfe=nfe).candidates} for nfe in (5, 6)}
    assert "Heun + AFS polynomial" in labels[5] and "Heun polynomial" in labels[6]


def test_candidates_of_nfe_and_depth_are_joined() -> None:
    both = classical_candidates(EDM(), (80.0, 0.002), nfe=8, depth=5, names=USUAL).candidates
    assert [c.nfe for c in both] == [8] * 22 + [5] * 22
    assert len(classical_candidates(EDM(), (80.0, 0.002), nfe=8, depth=8, names=USUAL).candidates) == 22
    with pytest.raises(ValueError, match="nfe or depth"):
        classical_candidates(EDM(), (80.0, 0.002))


def test_solvers_without_a_grid_are_named() -> None:
    found = classical_candidates(EDM(), (80.0, 0.0), nfe=7, names=USUAL)
    assert len(found.candidates) + len(found.omitted) == 22
    assert any(note.startswith("DPM++(2M) logsnr at 7: ") and "finite log-SNR" in note for note in found.omitted)
    assert {baseline.name for baseline in CLASSICAL} == {family.name for family in families.CLASSICAL}


@pytest.mark.parametrize(
    ("path", "noise_range"), [(EDM(), (80.0, 0.002)), (VP(), (1.0, 1e-3)), (Flow(), (1.0, 0.01))], ids=str
)
@pytest.mark.parametrize("nfe", [3, 7])
def test_every_classical_family_can_be_compared_with(path: Any, noise_range: Any, nfe: int) -> None:
    found = classical_candidates(path, noise_range, nfe=nfe)
    assert len({candidate.label for candidate in found.candidates}) == len(found.candidates)
    assert {candidate.nfe for candidate in found.candidates} == {nfe}
    missing = [note.split(" at ")[0] for note in found.omitted]
    assert all(note.startswith(("DPM-3S", "DPM++3S", "DPM-fast", "RES-3S", "Heun++")) for note in missing), missing


def test_baselines_have_many_names_and_any_grid() -> None:
    names = ["dpmpp_2m@karras", "uni_pc@beta", "seeds_2", "ddim", "euler"]
    found = classical_candidates(EDM(), (80.0, 0.002), nfe=5, names=names).candidates
    labels = [candidate.label for candidate in found]
    assert labels[:5] == [
        "DPM++(2M) karras",
        "DPM++(3M) karras",
        "UniPC-2 beta",
        "UniPC-3 beta",
        "DPM++2S + AFS logsnr",
    ]
    assert labels[5:] == ["Euler polynomial", "Euler quadratic"]
    assert [float(candidate.program.level[-1, 1]) for candidate in found[:4]] == [0.0] * 4
    lower = classical_candidates(EDM(), (80.0, 0.002), nfe=5, names=names, shift=1.0).candidates
    assert not any("beta" in candidate.label for candidate in lower)
    with pytest.raises(ValueError, match="baseline 'gas' is no classical solver; known: euler, .*, and as ddim, "):
        classical_candidates(EDM(), (80.0, 0.002), nfe=5, names=["gas"])
    with pytest.raises(ValueError, match="baseline 'euler@even' is on no grid; known: polynomial, "):
        classical_candidates(EDM(), (80.0, 0.002), nfe=5, names=["euler@even"])


def test_the_short_list_is_a_part_of_all() -> None:
    whole, short = (classical_candidates(EDM(), (80.0, 0.002), nfe=6, short=only).candidates for only in (False, True))
    assert {candidate.label for candidate in short} < {candidate.label for candidate in whole} and len(short) == 7


@pytest.mark.parametrize(("nfe", "depth", "fits"), [(5, 5, 140_000), (8, 5, 300_000)])
def test_a_comparison_takes_a_tenth_of_the_fits(nfe: int, depth: int, fits: int) -> None:
    settings = EvaluationSettings()
    few = settings.samples(nfe, depth, 256, 32, fits)
    assert 32 < few < 256 and settings.expected(nfe, depth, few) + 32 * few <= fits / 10
    assert settings.expected(nfe, depth, few + 1) + 32 * (few + 1) > fits / 10
    assert settings.samples(nfe, depth, 256, 32, 1_000) == 32 and settings.samples(nfe, depth, 20, 32, 1_000) == 20
    assert settings.samples(nfe, depth, 256, 32, 10_000_000) == 256
    assert EvaluationSettings(share=None).samples(nfe, depth, 256, 32, 1) == 256
    with pytest.raises(ValueError, match="evaluation.share must be above 0"):
        EvaluationSettings(share=0.0)


@pytest.mark.parametrize(
    ("path", "noise_range"), [(EDM(), (80.0, 0.002)), (VP(), (1.0, 1e-3)), (Flow(), (1.0, 0.01))], ids=str
)
def test_candidates_from_lower_begin_there_and_say_so(path: Any, noise_range: Any) -> None:
    whole = classical_candidates(path, noise_range, nfe=4, names=USUAL).candidates
    lower = classical_candidates(path, noise_range, nfe=4, shift=2.0, names=USUAL).candidates
    top = math.exp(min(float(-path.half_log_snr(noise_range[0])), math.log(80.0)) - 2)
    assert len(lower) >= len(whole) and all(c.label.endswith(f" from {top:.3g}") for c in lower)
    assert {c.label for c in whole} <= {c.label.split(" from ")[0] for c in lower}
    for candidate in lower:
        if "AFS" not in candidate.label:
            told = candidate.program.sigma[0] / candidate.program.alpha[0]
            assert float(told) == pytest.approx(top, rel=1e-9), candidate.label
    with pytest.raises(ValueError, match="a grid goes down from start to end"):
        classical_candidates(path, noise_range, nfe=4, shift=40.0)


def test_what_is_not_finite_is_not_among_the_best_and_batches_are_as_small_as_asked() -> None:
    teacher, noise, batches = toy_mixture(), draw(16, 6), list[int]()

    def holed(x: Tensor, alpha: Tensor, sigma: Tensor, cond: Any = None) -> Tensor:
        batches.append(len(x))
        hole = ((sigma / alpha > 25) & (sigma / alpha < 35))[:, None]
        return torch.where(hole, torch.nan, teacher(x, alpha, sigma))

    *_, reference = families.build("heun", Grid(steps=60)).solve(teacher, noise)
    best = best_from_lower(EDM(), (80.0, 0.002), holed, noise, None, reference, 4, batch_size=3)
    assert len(best) == 3 and not any("from 29.4" in candidate.label for candidate in best) and max(batches) == 3


def test_the_best_from_lower_are_found_on_the_first_samples() -> None:
    teacher, noise = toy_mixture(), draw(24, 6)
    *_, reference = families.build("heun", Grid(steps=60)).solve(teacher, noise)
    counted = Counted(teacher)
    best = best_from_lower(EDM(), (80.0, 0.002), counted, noise, None, reference, 4, 3)
    played = [
        c for s in SHIFTS for n in (4, 3) for c in classical_candidates(EDM(), (80.0, 0.002), n, shift=s).candidates
    ]
    assert [c.nfe for c in best] == [4] * 3 + [3] * 3 and counted.images == 16 * sum(c.nfe for c in played)
    short = Counted(teacher)
    assert len(best_from_lower(EDM(), (80.0, 0.002), short, noise, None, reference, 4, short=True)) == 3
    assert short.images == 5 * 7 * 16 * 4
    few = (teacher, noise[:16], None, reference[:16], 16)
    errors = [row.rmse_mean for row in compare(best, *few)]
    assert errors[:3] == sorted(errors[:3]) and errors[3:6] == sorted(errors[3:6])
    others = [c for s in SHIFTS for c in classical_candidates(EDM(), (80.0, 0.002), 4, shift=s).candidates]
    assert errors[0] == min(row.rmse_mean for row in compare(others, *few)[:-1])
    whole = compare(classical_candidates(EDM(), (80.0, 0.002), 4).candidates, *few)[:-1]
    assert errors[0] < 0.8 * min(row.rmse_mean for row in whole)
    assert best_from_lower(EDM(), (80.0, 40.0), teacher, noise, None, reference, 4) == []


# --- compare ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def comparison() -> dict[str, Any]:
    teacher, noise = toy_mixture(), draw(24, 6)
    *_, reference = families.build("heun", Grid(steps=60)).solve(teacher, noise)
    found = classical_candidates(EDM(), (80.0, 0.002), nfe=8, depth=5)
    real = draw_data(teacher, 40, torch.Generator().manual_seed(3))
    return {"teacher": teacher, "noise": noise, "reference": reference, "real": real, "candidates": found.candidates}


def test_compare_measures_every_candidate(comparison: dict[str, Any]) -> None:
    c, seen = comparison, []
    chosen = [student(), *c["candidates"]]
    counted = Counted(c["teacher"])
    args = counted, c["noise"], None, c["reference"], 10
    rows = compare(chosen, *args, Identity(6), c["real"], lambda *event: seen.append(event))
    assert [r.label for r in rows] == [candidate.label for candidate in chosen] + ["reference"]
    assert counted.images == 24 * sum(candidate.nfe for candidate in chosen)
    assert seen[:3] == [("EPD", 10, 24), ("EPD", 20, 24), ("EPD", 24, 24)]
    for candidate, measured in zip(chosen, rows, strict=False):
        samples = sample(candidate.program, c["teacher"], c["noise"])
        errors = paired_errors(samples, c["reference"]).rmse
        expected = errors.mean().item(), errors.quantile(0.95).item()
        assert (measured.rmse_mean, measured.rmse_p95) == pytest.approx(expected, rel=1e-9)
        assert measured.frechet == pytest.approx(frechet(samples, c["real"], Identity(6)), rel=1e-9)
        assert measured.seconds is not None and measured.seconds > 0
    own = rows[-1]
    assert (own.kind, own.nfe, own.rmse_mean, own.psnr, own.seconds) == ("reference", None, 0.0, math.inf, None)
    assert own.frechet == pytest.approx(frechet(c["reference"], c["real"], Identity(6)), rel=1e-9)


def test_compare_slices_conditions_and_leaves_no_graph() -> None:
    teacher = Mixture(draw(4, 6), [1.0] * 4, [0.3] * 4, labels=[0, 0, 1, 1])
    noise, cond = draw(7, 6), torch.arange(7) % 2
    program = families.build("euler", Grid(steps=4)).program()
    reference = sample(program, teacher, noise, cond)
    rows = compare([Candidate.of("Euler", program, "classical")], teacher, noise, cond, reference, 3)
    assert rows[0].rmse_mean < 1e-12 and rows[0].frechet is None
    assert not reference.is_inference()


def test_compare_omits_a_frechet_distance_of_too_few_images(comparison: dict[str, Any]) -> None:
    c = comparison
    args = c["candidates"][:1], c["teacher"], c["noise"], None, c["reference"], 10
    assert [r.frechet for r in compare(*args, Identity(6), c["real"][:6])] == [None, None]
    with pytest.raises(ValueError, match="give `real`"):
        compare(*args, Identity(6))
    with pytest.raises(ValueError, match="differ in shape"):
        compare(*args[:4], c["reference"][:3], 10)


# --- report ----------------------------------------------------------------------------------------------------------


def some_rows() -> list[Row]:
    return [
        row("Euler", nfe=8, depth=8, rmse_mean=0.5, psnr=20.0),
        row('odd, "name" | here', nfe=8, depth=8, rmse_mean=1e-5, psnr=50.0),
        row("short", nfe=5, depth=5, rmse_mean=0.75, frechet=None),
        row("EPD", kind="student", nfe=8, depth=5, rmse_mean=0.25, seconds=None),
        row("other", nfe=3, depth=3),
        Row("reference", "reference", None, None, 0.0, 0.0, 0.0, math.inf),
    ]


def test_csv_round_trip(tmp_path: Path) -> None:
    with write_csv(tmp_path / "rows.csv", some_rows()).open(encoding="utf-8", newline="") as stream:
        lines = list(csv.DictReader(stream))
    for line, expected in zip(lines, some_rows(), strict=True):
        assert list(line) == [field.name for field in fields(Row)]
        for name, text in line.items():
            value = getattr(expected, name)
            assert text == "" if value is None else type(value)(text) == value, name
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


def test_groups_put_the_student_first() -> None:
    groups = {name: [line.label for line in group] for name, group in by_role(some_rows()).groups.items()}
    assert list(groups) == ["student", "same nfe", "same depth", "classical", "reference"]
    assert groups["same nfe"] == ['odd, "name" | here', "Euler"] and groups["same depth"] == ["short"]


def test_markdown_holds_every_number(tmp_path: Path) -> None:
    table = by_role(some_rows())
    text = write_markdown(tmp_path / "rows.md", table, {"FD": "FD(toy)"}, "Mixture", "The end.").read_text("utf-8")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.replace("\\|", "/").strip("|").split("|")] for line in lines]
    assert (
        text.startswith("# Mixture\n\n|")
        and text.endswith("|\n\nThe end.\n")
        and "FD(toy)" in cells[0]
        and len({len(line) for line in cells}) == 1
    )
    assert cells[2][:6] == ["student", "EPD", "8", "5", "0.2500", "0.1250".join(["**"] * 2)]
    assert cells[3][1:5] == ['odd, "name" / here', "8", "8", "**1.0e-05**"] and "**50.00**" in cells[3]
    assert cells[-1] == ["reference", "reference", "-", "-", "0.0000", "0.0000", "0.0000", "inf", "-", "-"]


@pytest.mark.parametrize("terminal", [True, False])
def test_terminal_table_fits_100_columns(comparison: dict[str, Any], terminal: bool) -> None:
    c = comparison
    rows = compare(c["candidates"], c["teacher"], c["noise"], None, c["reference"], 24, Identity(6), c["real"])
    console = Console(width=100, record=True, force_terminal=terminal, file=io.StringIO())
    table = by_role([replace(rows[0], label="EPD", kind="student", depth=5), *rows[1:]])
    console.print(terminal_table(table, {"FD": "FD(DigitClassifier)"}, plain=not terminal))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 100 and "…" not in text
    assert all(word in text for word in ("same depth", "DEIS-tAB3 quadratic", "[dB]", "[s]", "FD(DigitClassifier)"))
    assert ("*" in text) is not terminal and (text.isascii() or terminal)


def test_names_in_the_line_below_a_table_are_no_markup() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    student = row("runs/[red]/[/a].json", kind="student", nfe=8, depth=5, rmse_mean=0.25, reference_error=0.2)
    console.print(terminal_table(by_nfe([student]), {}, plain=True))
    assert console.export_text().count("runs/[red]/[/a].json") == 2


def test_outside_of_a_terminal_a_table_is_as_wide_as_it_needs() -> None:
    console = Console(width=40, record=True, force_terminal=False, file=io.StringIO())
    print_table(console, by_nfe(some_rows()), {"FD": "FD(toy)"})
    text = console.export_text()
    assert all(word in text for word in ("RMSE median", "time [s]", "0.1250")) and "…" not in text
    lines = [line for line in text.splitlines() if line.startswith(("|", "+"))]
    assert len({len(line) for line in lines}) == 1 and len(lines[0]) > 40


# --- figures ---------------------------------------------------------------------------------------------------------


def png_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and data[-8:-4] == b"IEND"
    return struct.unpack(">II", data[16:24])


@pytest.mark.parametrize("channels", [1, 3])
def test_sample_grid_repeats_pixels_exactly(tmp_path: Path, channels: int) -> None:
    from matplotlib.image import imread

    images = torch.linspace(-1, 1, 2 * channels * 64).view(2, channels, 8, 8)
    columns = {"noise": images, "a long title in two lines": images}
    path = figures.save(figures.draw_samples(columns), tmp_path / "grid.png")
    width, height = png_size(path)
    assert (width, height) == (2 * 126 + 6, 2 * 126 + 6 + (height - 258)) and height < 400
    found = torch.from_numpy(imread(path))[height - 126 : height - 6 : 15, 132:252:15, :3]
    expected = ((images[1].expand(3, -1, -1).permute(1, 2, 0) + 1) * 127.5).round() / 255
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert [entry.name for entry in tmp_path.iterdir()] == ["grid.png"]


def test_sample_grid_refuses_vectors(tmp_path: Path) -> None:
    for columns in ({"a": draw(2, 6)}, {}, {"a": draw(2, 1, 8, 8), "b": draw(3, 1, 8, 8)}):
        with pytest.raises(ValueError, match="images of one shape"):
            figures.draw_samples(columns)
    assert not list(tmp_path.iterdir())


def test_error_figure_is_written(tmp_path: Path) -> None:
    rows = [row(f"Heun{' + AFS' * (n % 2)}", nfe=n, depth=n, rmse_mean=1 / n**2) for n in range(3, 11)]
    rows += [row("Euler", nfe=n, depth=n, rmse_mean=1 / n) for n in range(3, 11)]
    curves = figures.group_curves([*rows, row("EPD", kind="student")])
    assert {label: len(curve) for label, curve in curves.items()} == {"Heun": 8, "Euler": 8}
    stars = [row("EPD", kind="student", nfe=8, depth=5, rmse_mean=0.01)]
    width, height = png_size(figures.save(figures.draw_errors(curves, stars), tmp_path / "error.png"))
    assert 1200 < width < 2000 and 600 < height < 1000
    png_size(figures.save(figures.draw_errors({}, stars), tmp_path / "star.png"))
    with pytest.raises(ValueError, match="neither curves nor"):
        figures.draw_errors({}, [])
