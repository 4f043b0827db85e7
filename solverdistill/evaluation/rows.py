"""A solver's line in a comparison: what it costs, and how far it is from the reference and from real images."""

from __future__ import annotations

import math
from dataclasses import dataclass

from solverdistill.evaluation.candidates import Candidate
from solverdistill.evaluation.metrics.paired_errors import PairedErrors
from solverdistill.evaluation.metrics.set_distances import Distances
from solverdistill.references.choice import is_coarse

REFERENCE = "reference"


@dataclass(frozen=True)
class Row:
    """One solver's line in a comparison.

    Args:
        label: Name of the solver.
        kind: "student", "classical" or "reference".
        nfe: Evaluations of the denoiser per sample; None where not known.
        depth: Sequential network calls per sample; None where not known.
        rmse_mean: Mean of the per-image RMSE against the reference end points, in data units.
        rmse_median: Its median.
        rmse_p95: Its 95th percentile.
        psnr: Mean per-image PSNR in dB; infinite for the reference itself.
        frechet: FD(<extractor>) against real images; None without extractor or with too few images.
        seconds: Wall time of sampling all images; None for the reference.
        psnr_median: Median of the per-image PSNR.
        psnr_p05: Its 5th percentile: 95 % of the images are better.
        ssim: Mean per-image structural similarity; None where the samples are no images.
        ssim_median: Its median.
        ssim_p05: Its 5th percentile.
        lpips: Mean per-image LPIPS; None where it was not asked for.
        lpips_median: Its median.
        lpips_p95: Its 95th percentile.
        kernel: Kernel distance KD(<extractor>) against real images, KID on Inception.
        precision: Share of the samples that lie within the real images' manifold.
        recall: Share of the real images that lie within the samples' manifold.
        images: Number of samples measured.
        reference_error: RMSE of the reference itself from the exact solution; None where it was not measured.
    """

    label: str
    kind: str
    nfe: int | None
    depth: int | None
    rmse_mean: float
    rmse_median: float
    rmse_p95: float
    psnr: float
    frechet: float | None = None
    seconds: float | None = None
    psnr_median: float | None = None
    psnr_p05: float | None = None
    ssim: float | None = None
    ssim_median: float | None = None
    ssim_p05: float | None = None
    lpips: float | None = None
    lpips_median: float | None = None
    lpips_p95: float | None = None
    kernel: float | None = None
    precision: float | None = None
    recall: float | None = None
    images: int | None = None
    reference_error: float | None = None

    @property
    def coarse(self) -> bool:
        """Whether this is a student that is too near to the reference's own error to be told from it."""
        return self.kind == "student" and is_coarse(self.rmse_mean, self.reference_error)

    @property
    def order(self) -> float:
        """What rows are sorted by: the mean RMSE, infinite where a solver has diverged."""
        return self.rmse_mean if math.isfinite(self.rmse_mean) else math.inf


def make_row(
    candidate: Candidate | None, errors: PairedErrors, distances: Distances, seconds: float | None = None
) -> Row:
    """A row from the errors of all images; without a candidate it is the reference's own."""
    about = (REFERENCE, REFERENCE, None, None)
    if candidate is not None:
        about = candidate.label, candidate.kind, candidate.nfe, candidate.depth
    found: dict[str, float] = {}
    for name, tail in (("rmse", "p95"), ("psnr", "p05"), ("ssim", "p05"), ("lpips", "p95")):
        summary = errors.summary(name)
        if summary is not None:
            mean = "rmse_mean" if name == "rmse" else name
            found |= {mean: summary.mean, f"{name}_median": summary.median, f"{name}_{tail}": summary.tail}
    return Row(*about, **found, **vars(distances), seconds=seconds, images=len(errors.rmse))
