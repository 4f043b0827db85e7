"""Normal equations of one row of a table, and their solution with a ridge."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from solverdistill.fits.least_squares.linear_rows import Registers, Row
from solverdistill.support.processes import total

KEEP = float("inf")  # a ridge that keeps the params
EPS = torch.finfo(torch.float64).eps
UNDETERMINED = 1e-8  # share of the largest mean square at which a column holds nothing but rounding errors
Reduce = Callable[[Tensor], Tensor]


class Solution(NamedTuple):
    """A step in the params of a row, shape (entries,), and the mean squared residual that it leaves."""

    step: Tensor
    square: float


class RowEquations(NamedTuple):
    """A row's least-squares problem in a basis of nearly orthonormal columns; means over samples and pixels, float64.

    basis: steps that give these columns, shape (entries, rank); penalty: products of these steps, scaled by the sizes
    of the params' own columns, (rank, rank); H: products of columns, (rank, rank); g: products with the residual,
    (rank,); square: mean squared residual without a step.
    """

    basis: Tensor
    penalty: Tensor
    H: Tensor
    g: Tensor
    square: Tensor

    def solve(self, ridge: float) -> Solution:
        """Minimise the mean squared residual plus ridge times that of the step scaled by the sizes of its columns."""
        if ridge == KEEP or not bool(torch.isfinite(self.H).all() & torch.isfinite(self.g).all()):
            return Solution(self.basis.new_zeros(self.basis.shape[0]), float(self.square))
        weights = torch.linalg.solve(self.H + ridge * self.penalty, self.g)
        return Solution(self.basis @ weights, float(self.square - weights @ (2 * self.g - self.H @ weights)))


def row_equations(
    row: Row, registers: Registers, target: Callable[[Tensor], Tensor], reduce: Reduce = total
) -> RowEquations:
    """Accumulate the normal equations of a row over batches and, with `reduce`, over processes.

    The registers are gone through two or three times, to begin with to find well-conditioned columns: denoised images
    are nearly the same, and plain normal equations lose twice the digits that this costs (Yamamoto et al., "Roundoff
    error analysis of the CholeskyQR2 algorithm", ETNA 44, 2015).

    Args:
        row: The row.
        registers: What it combines.
        target: Wanted states of the samples at given positions.
        reduce: Sums a tensor over processes.
    """
    products = _mean_products(row.jacobian, registers, None, reduce)
    basis = _orthonormal(products, 0.0)
    if basis.shape[1] > 1:
        # Rounding decided the smallest columns of the first pass; at unit size they are seen for what they are.
        again = _mean_products(basis.T @ row.jacobian, registers, None, reduce)
        basis = basis @ _orthonormal(again, UNDETERMINED, turned=False)
    penalty = basis.T @ (products.diagonal()[:, None] * basis)

    def residual(images: Tensor, index: Tensor) -> Tensor:
        return double(target(index)).flatten() - row.coefficients.to(images.device) @ images

    means = _mean_products(basis.T @ row.jacobian, registers, residual, reduce)
    return RowEquations(basis, penalty, means[:-1, :-1], means[:-1, -1], means[-1, -1])


def _mean_products(
    jacobian: Tensor, registers: Registers, residual: Callable[[Tensor, Tensor], Tensor] | None, reduce: Reduce
) -> Tensor:
    """Mean products of all columns, the residual last where there is one."""
    size, known = jacobian.shape[0] + (residual is not None), jacobian.shape[1]
    sums, pixels = torch.zeros(size, size, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for index in registers.parts():
        images = torch.stack([double(image[index]).flatten() for image in registers.images[:known]])
        columns = jacobian.to(images.device) @ images
        if residual is not None:
            columns = torch.cat([columns, residual(images, index)[None]])
        sums += (columns @ columns.T).cpu()
        pixels += images.shape[1]
    reduced = reduce(torch.cat([sums.flatten(), pixels]))
    return (reduced[:-1] / reduced[-1]).view(size, size)


def _orthonormal(products: Tensor, smallest: float, turned: bool = True) -> Tensor:
    """Combinations of columns with the given products that are orthonormal, up to rounding. Shape: (columns, rank).

    Columns whose mean square is at most `smallest` times the largest are left out, and all if a product is not finite.

    Args:
        products: Mean products of the columns.
        smallest: Share of the largest mean square.
        turned: Turn the columns into their principal directions, in which large and small ones are apart. False: stay
            as close to them as can be, so that columns that are orthonormal already, and whose principal directions
            mean nothing, are not mixed: small differences of images, blown up to unit size, have few digits.
    """
    square = products.diagonal()
    if not bool(torch.isfinite(products).all()) or not len(square):
        return products.new_zeros(len(square), 0)
    used = square > smallest * square.max()
    size, kept = square[used].sqrt(), torch.eye(len(square), dtype=torch.float64)[:, used]
    values, vectors = torch.linalg.eigh(products[used][:, used] / size[:, None] / size)
    combined = vectors / values.clamp(min=EPS * float(values.max())).sqrt()
    return kept @ ((combined if turned else combined @ vectors.T) / size[:, None])


def double(x: Tensor) -> Tensor:
    """The tensor in float64, on the host where its device has none."""
    return x.cpu().double() if x.device.type == "mps" else x.double()
