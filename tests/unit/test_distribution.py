"""Distances between sets: against clean-fid's and torchmetrics' own functions, and by hand; sources of real images."""

from __future__ import annotations

import gzip
import hashlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from solverdistill.evaluation.measuring import measure_real
from solverdistill.evaluation.metrics import cleanfid
from solverdistill.evaluation.metrics.feature_spaces import Features, FeatureSpace, open_space
from solverdistill.evaluation.metrics.feature_statistics import FeatureStatistics
from solverdistill.evaluation.metrics.paired_errors import paired_errors
from solverdistill.evaluation.metrics.set_distances import distances, precision_recall
from solverdistill.evaluation.pixels import to_pixels
from solverdistill.evaluation.real_images import ArrayImages, open_images
from solverdistill.teachers.mixture import toy_mixture

WIDTH = 4


class Averages(nn.Module):
    """Extractor: mean and spread of two halves of an image."""

    num_features, name = WIDTH, "averages"

    def forward(self, x: Tensor) -> Tensor:
        halves = x.mean(1).chunk(2, dim=-1)
        return torch.stack([f for half in halves for f in (half.mean((1, 2)), half.std((1, 2)))], dim=1)


def space(quantised: bool = True) -> FeatureSpace:
    return FeatureSpace(Features(Averages()), "averages", quantised)


def images(count: int, seed: int, bias: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (0.4 * torch.randn(count, 3, 8, 8, generator=generator) + bias).clamp(-1, 1)


def statistics(x: Tensor, batch: int, quantised: bool = True, subset: int = 1000) -> FeatureStatistics:
    """Streamed statistics."""
    result = FeatureStatistics(WIDTH, range(min(subset, len(x))))
    for start in range(0, len(x), batch):
        part = x[start : start + batch]
        result.update(space(quantised)(part), range(start, start + len(part)))
    return result


def save_folder(folder: Path, x: Tensor) -> Path:
    from PIL import Image

    folder.mkdir()
    for i, image in enumerate(to_pixels(x).permute(0, 2, 3, 1).numpy()):
        Image.fromarray(image).save(folder / f"{i:04d}.png")
    return folder


def original_fid(a: Path, b: Path, extractor: Any) -> float:
    """clean-fid's own function on folders, without its resizing."""
    from cleanfid import fid

    def run(batch: Tensor) -> Tensor:
        return extractor(batch / 127.5 - 1).double()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options: Any = {"custom_feat_extractor": run, "num_workers": 0, "verbose": False, "device": "cpu"}
        return fid.compute_fid(str(a), str(b), custom_fn_resize=lambda image: image, **options)


def test_the_streamed_frechet_distance_is_clean_fids_own(tmp_path: Path) -> None:
    real, samples = images(40, 0), images(30, 1, bias=0.1)
    expected = original_fid(save_folder(tmp_path / "a", samples), save_folder(tmp_path / "b", real), Averages())
    for batch in (7, 30):
        found = distances(statistics(real, 16), statistics(samples, batch)).frechet
        assert found == pytest.approx(expected, rel=1e-6)
    folder = open_images(tmp_path / "b", 3)
    streamed = measure_real(folder, space(), 10, 9, (3, 8, 8))
    assert distances(streamed, statistics(samples, 8)).frechet == pytest.approx(expected, rel=1e-6)
    assert streamed.kept.shape == (10, WIDTH) and bool((streamed.kept != 0).any(1).all())


def test_the_kernel_distance_is_clean_fids_own() -> None:
    from cleanfid.fid import kernel_distance

    real, samples = statistics(images(40, 0), 16), statistics(images(30, 1, bias=0.3), 7)
    np.random.seed(0)
    expected = kernel_distance(real.kept.double().numpy(), samples.kept.double().numpy())
    np.random.seed(5)
    before = np.random.get_state()[1].copy()  # pyright: ignore
    found = distances(real, samples).kernel
    assert found == pytest.approx(expected, rel=1e-12) and found > 0
    assert (np.random.get_state()[1] == before).all()  # pyright: ignore


def test_the_frechet_distance_is_torchmetrics_too_and_its_kernel_distance_is_its_own() -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    real, samples = images(40, 0), images(30, 1, bias=0.1)
    metric = FrechetInceptionDistance(feature=Features(Averages()), normalize=True)
    metric.update(real, real=True)
    metric.update(samples, real=False)
    pair = statistics(real, 16, quantised=False), statistics(samples, 7, quantised=False)
    found, other = distances(*pair, backend="torchmetrics"), distances(*pair)
    assert found.frechet == other.frechet == pytest.approx(metric.compute().item(), rel=1e-6)
    # Both estimators are unbiased; they draw other subsets.
    assert found.kernel == pytest.approx(other.kernel, abs=2e-3)
    with pytest.raises(ValueError, match="known: cleanfid, torchmetrics"):
        distances(*pair, backend="fidelity")


def test_too_few_images_have_no_frechet_distance() -> None:
    few = distances(statistics(images(40, 0), 16), statistics(images(4, 1), 4))
    assert few.frechet is None and few.kernel is not None and few.precision is not None
    assert distances(statistics(images(40, 0), 16), statistics(images(3, 1), 3)).kernel is None
    with pytest.raises(ValueError, match="more than 4 samples, not 3"):
        _ = statistics(images(3, 1), 3).covariance


def test_precision_and_recall_are_those_of_the_definition() -> None:
    real, samples = torch.randn(30, 2), 1.5 * torch.randn(20, 2) + 0.5

    def covered(points: Tensor, centres: Tensor, k: int) -> float:
        radii = [sorted((c - other).norm().item() for other in centres)[k] for c in centres]
        return np.mean([any((p - c).norm().item() <= r for c, r in zip(centres, radii, strict=True)) for p in points])

    for k in (1, 3):
        expected = covered(samples, real, k), covered(real, samples, k)
        assert precision_recall(real, samples, k) == pytest.approx(expected)
    assert precision_recall(real, real) == (1.0, 1.0)
    assert precision_recall(real, samples + 1e6) == (0.0, 0.0)
    with pytest.raises(ValueError, match="more than 3 images"):
        precision_recall(real, samples[:3])


def test_statistics_refuse_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 3\), not \(batch, 4\)"):
        FeatureStatistics(4).update(torch.zeros(2, 3), range(2))


# --- clean-fid's Inception -------------------------------------------------------------------------------------------


class _Layers(nn.Module):
    """Stands in for Inception: 2048 features of a resized image."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(x, (32, 64)).mean(1)[:, :, :, None]


class _Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = _Layers()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) * self.scale


@pytest.fixture
def inception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A network file in the place of the real one."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(cleanfid.tempfile, "gettempdir", lambda: str(tmp_path / "nowhere"))
    return tmp_path / "checkpoints" / cleanfid.INCEPTION


def test_missing_weights_are_told_with_url_and_place(inception: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"download {cleanfid.URL} and put it at {inception}"):
        open_space("fid", "cleanfid", toy_mixture())


def test_fid_is_clean_fids_network_after_clean_fids_resizing(inception: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inception.parent.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(_Network()).save(str(inception))
    with pytest.raises(ValueError, match=r"has SHA-256 .* download"):
        open_space("fid", "cleanfid", toy_mixture())
    monkeypatch.setattr(cleanfid, "SHA256", hashlib.sha256(inception.read_bytes()).hexdigest())
    found = open_space("fid", "cleanfid", toy_mixture())  # without a warning
    assert found is not None and (found.frechet, found.kernel, found.width) == ("FID", "KID", 2048)
    x = images(3, 0)
    from cleanfid.resize import build_resizer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        resized = [build_resizer("clean")(image) for image in to_pixels(x).permute(0, 2, 3, 1).numpy()]
    expected = _Layers()((torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2) - 128) / 128).reshape(3, 2048)
    torch.testing.assert_close(found(x), expected.double(), rtol=0, atol=1e-6)
    grey = found(x[:, :1])
    torch.testing.assert_close(grey, found(x[:, :1].expand(-1, 3, -1, -1)))


def test_other_features_are_never_called_fid() -> None:
    found = open_space(Averages(), "torchmetrics", toy_mixture())
    assert found is not None and (found.frechet, found.kernel) == ("FD(averages)", "KD(averages)")
    assert not found.quantised and open_space("auto", "cleanfid", toy_mixture()) is None
    with pytest.raises(ValueError, match="'fidd' is unknown; known: auto, fid, digits, inception"):
        open_space("fidd", "cleanfid", toy_mixture())


# --- real images -----------------------------------------------------------------------------------------------------


def test_images_of_every_source_are_the_same(tmp_path: Path) -> None:
    x = to_pixels(images(5, 0))[:, :1]
    expected = x.float() / 127.5 - 1
    header = b"".join(n.to_bytes(4, "big") for n in (0x803, 5, 8, 8))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(header + x.numpy().tobytes())
    (tmp_path / "mnist.gz").write_bytes(gzip.compress(header + x.numpy().tobytes()))
    np.savez(tmp_path / "a.npz", labels=np.zeros(5), images=x[:, 0].numpy())
    np.savez(tmp_path / "b.npz", x.permute(0, 2, 3, 1).numpy())
    np.save(tmp_path / "c.npy", expected.numpy())
    from PIL import Image

    (tmp_path / "folder" / "below").mkdir(parents=True)
    for i, image in enumerate(x[:, 0].numpy()):
        Image.fromarray(image).save(tmp_path / "folder" / ("below" if i > 3 else "") / f"{i}.png")
    for name in ("t10k-images-idx3-ubyte", "mnist.gz", "a.npz", "b.npz", "c.npy", "folder"):
        found = open_images(tmp_path / name, 1)
        assert len(found) == 5, name
        torch.testing.assert_close(found.take([3, 1]), expected[[3, 1]], rtol=0, atol=1e-6)


def test_what_holds_no_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("no images here")
    np.savez(tmp_path / "moments.npz", mu=np.zeros(3))
    for name, error, message in (
        ("nothing", FileNotFoundError, "do not exist"),
        ("empty", FileNotFoundError, "holds no images"),
        ("text", ValueError, "no folder, .npz, .npy or MNIST image file"),
        ("moments.npz", ValueError, r"not float64 of shape \(3,\)"),
    ):
        with pytest.raises(error, match=message):
            open_images(tmp_path / name, 1)
    with pytest.raises(ValueError, match=r"shape \(3, 8, 8\), the samples \(1, 8, 8\)"):
        measure_real(ArrayImages("set", images(5, 0)), space(), 5, 5, (1, 8, 8))


# --- paired ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 16])
def test_ssim_is_one_of_equal_images_and_falls_with_the_error(size: int) -> None:
    x = torch.rand(4, 1, size, size) * 2 - 1
    values = [paired_errors((x + error).clamp(-2, 2), x).ssim for error in (0.0, 0.1, 0.5)]
    assert values[0] is not None and values[1] is not None and values[2] is not None
    torch.testing.assert_close(values[0], torch.ones(4, dtype=torch.float64))
    assert bool((values[1] < values[0]).all() and (values[2] < values[1]).all())


def test_ssim_is_its_formula_over_gaussian_windows() -> None:
    """(2 m n + c1)(2 cov + c2) / ((m^2 + n^2 + c1)(var + var + c2)) around every pixel, and their mean."""
    a, b = (torch.rand(1, 1, 8, 8, dtype=torch.float64) for _ in range(2))
    offsets = torch.arange(-5, 6, dtype=torch.float64)
    line = torch.exp(-(offsets**2) / (2 * 1.5**2))
    window = torch.outer(line, line) / line.sum() ** 2

    def local_mean(x: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(x, (5, 5, 5, 5), mode="reflect")[0, 0]
        return torch.stack([(padded[i : i + 11, j : j + 11] * window).sum() for i in range(8) for j in range(8)])

    m, n = local_mean(a), local_mean(b)
    var_a, var_b, cov = local_mean(a * a) - m**2, local_mean(b * b) - n**2, local_mean(a * b) - m * n
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    expected = (2 * m * n + c1) * (2 * cov + c2) / ((m**2 + n**2 + c1) * (var_a + var_b + c2))
    found = paired_errors(a, b).ssim
    assert found is not None and found.item() == pytest.approx(expected.mean().item(), abs=1e-6)  # in single precision
    assert paired_errors(a[..., :5, :5], b[..., :5, :5]).ssim is None


def test_ssim_of_what_diverged_is_a_number() -> None:
    x = torch.rand(3, 3, 8, 8, dtype=torch.float64) * 2 - 1
    far = x.clone()
    far[1] *= 1e25
    values = paired_errors(far, x).ssim
    assert values is not None and bool(values.isfinite().all()) and float(values[1]) < 0.01
    torch.testing.assert_close(values[::2], torch.ones(2, dtype=torch.float64))


def test_summaries_name_the_bad_tail() -> None:
    a, b = torch.zeros(21, 1, 8, 8), torch.linspace(0.1, 0.5, 21)[:, None, None, None].expand(-1, 1, 8, 8)
    errors = paired_errors(a, b, lambda x, y: (x - y).abs().mean((1, 2, 3)), (2 * a, 2 * b))
    rmse, psnr, lpips = (errors.summary(name) for name in ("rmse", "psnr", "lpips"))
    assert rmse is not None and psnr is not None and lpips is not None
    assert (rmse.median, rmse.tail) == pytest.approx((0.3, 0.48), rel=1e-6)
    assert (lpips.median, lpips.tail) == pytest.approx((0.6, 0.96), rel=1e-6)  # on the images, here twice the data
    assert psnr.tail == pytest.approx(10 * np.log10(4 / 0.96**2), rel=1e-3) and psnr.tail < psnr.median
    equal = paired_errors(a, a).summary("psnr")
    assert equal is not None and equal.mean == equal.median == equal.tail == float("inf")
