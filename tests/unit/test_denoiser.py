"""The wrappers of the denoiser protocol and the exact mixture."""

from __future__ import annotations

import pytest
import torch
from helpers import draw_data
from torch import Tensor

from solverdistill.denoisers.wrappers import Checkpointed, Counted, Guided, Thresholded
from solverdistill.teachers.digits import digits_kde, edm_digits
from solverdistill.teachers.mixture import Mixture, mixture, toy_mixture


def levels(batch: int, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
    return torch.full((batch,), alpha, dtype=torch.float64), torch.full((batch,), sigma, dtype=torch.float64)


def labelled_mixture() -> Mixture:
    base = toy_mixture()
    return Mixture(base.means.clone(), base.weights.clone(), base.stds.clone(), labels=[0, 0, 1, 2])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 40.0])
def test_levels_are_scale_free(scale: float) -> None:
    teacher, x = toy_mixture(), torch.randn(5, 6, dtype=torch.float64)
    alpha, sigma = levels(5, 0.3, 0.9)
    expected = teacher(x, alpha, sigma)
    torch.testing.assert_close(teacher(x * scale, alpha * scale, sigma * scale), expected, rtol=0, atol=1e-11)


def test_mixture_is_the_posterior_mean_by_monte_carlo() -> None:
    teacher = toy_mixture(dims=1)
    generator = torch.Generator().manual_seed(0)
    data = draw_data(teacher, 2_000_000, generator)
    x = data * 0.7 + 0.8 * torch.randn(data.shape, generator=generator, dtype=torch.float64)
    for point in (-1.0, 0.2, 1.1):
        near = (x - point).abs() < 0.02
        alpha, sigma = levels(1, 0.7, 0.8)
        exact = teacher(torch.tensor([[point]], dtype=torch.float64), alpha, sigma)
        assert float(exact) == pytest.approx(float(data[near].mean()), abs=0.02)


def test_mixture_is_finite_at_pure_noise_and_at_clean_data() -> None:
    teacher, x = toy_mixture(), torch.randn(3, 6, dtype=torch.float64)
    prior = teacher(x, *levels(3, 0.0, 1.0))
    torch.testing.assert_close(prior, (teacher.weights @ teacher.means).expand(3, 6))
    torch.testing.assert_close(teacher(x, *levels(3, 1.0, 0.0)), x)


def test_a_class_keeps_its_components_and_minus_one_all() -> None:
    teacher, x = labelled_mixture(), torch.randn(4, 6, dtype=torch.float64)
    alpha, sigma = levels(4, 1.0, 0.7)
    only = mixture(teacher.means[3:], [1.0], teacher.stds[3:])
    torch.testing.assert_close(teacher(x, alpha, sigma, torch.full((4,), 2)), only(x, alpha, sigma))
    torch.testing.assert_close(teacher(x, alpha, sigma, torch.full((4,), -1)), teacher(x, alpha, sigma))


def test_guidance_extrapolates_in_one_call() -> None:
    teacher, x = labelled_mixture(), torch.randn(4, 6, dtype=torch.float64)
    counted = Counted(teacher)
    alpha, sigma = levels(4, 1.0, 0.7)
    cond = torch.tensor([0, 1, 2, 2])
    guided = Guided(counted, 2.5, teacher.null_cond)
    null, conditional = teacher(x, alpha, sigma), teacher(x, alpha, sigma, cond)
    torch.testing.assert_close(guided(x, alpha, sigma, cond), null + 2.5 * (conditional - null))
    assert (counted.calls, counted.images, guided.passes) == (1, 8, 2)
    torch.testing.assert_close(Guided(teacher, 1.0, teacher.null_cond)(x, alpha, sigma, cond), conditional)


def test_checkpointing_keeps_values_and_gradients() -> None:
    teacher, x = toy_mixture(), torch.randn(4, 6, dtype=torch.float64)
    gradients = []
    for denoiser in (teacher, Checkpointed(teacher)):
        alpha, sigma = (level.requires_grad_() for level in levels(4, 0.6, 0.8))
        denoiser(x, alpha, sigma).square().sum().backward()
        gradients.append((alpha.grad, sigma.grad))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_thresholding_follows_its_formula() -> None:
    denoised = torch.tensor([[0.5, -0.5, 0.2, 0.1], [4.0, -3.0, 0.5, 1.0]], dtype=torch.float64)
    result = Thresholded(lambda x, alpha, sigma: denoised, quantile=0.5)(denoised, *levels(2, 1.0, 1.0))
    torch.testing.assert_close(result[0], denoised[0])
    q = 2.0  # the median of 4, 3, 0.5, 1
    torch.testing.assert_close(result[1], denoised[1].clamp(-q, q) / q)


def test_fingerprint_depends_on_weights_and_facts() -> None:
    base, same = toy_mixture(), toy_mixture()
    assert base.fingerprint() == same.fingerprint()
    same.means[0, 0] += 1e-9
    other_range = toy_mixture()
    other_range.noise_range = (10.0, 0.1)
    assert len({base.fingerprint(), same.fingerprint(), other_range.fingerprint()}) == 3


@pytest.mark.parametrize("make", [edm_digits, digits_kde])
def test_digit_teachers_denoise_real_digits(make: object) -> None:
    from solverdistill.teachers.digits import digit_images

    teacher = make()  # type: ignore[operator]
    images, classes = digit_images()
    x = images[:32] + 0.3 * torch.randn(32, 1, 8, 8)
    alpha, sigma = (level.float() for level in levels(32, 1.0, 0.3))
    error = (teacher(x, alpha, sigma, classes[:32]) - images[:32]).pow(2).mean().sqrt()
    assert float(error) < 0.2 and not any(p.requires_grad for p in teacher.parameters())
