"""Relativistic losses and the discriminators."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from solverdistill.fits.gradient.discriminators import (
    Discriminator,
    discriminator_loss,
    generator_loss,
    paper_discriminator,
    small_discriminator,
)
from solverdistill.fits.gradient.ema import moving_average, restart


def test_losses_of_equal_images_are_log_two_and_penalties_are_squared_slopes() -> None:
    slope = torch.tensor([3.0, 4.0])

    def linear(x: Tensor) -> Tensor:
        return (x * slope).sum(1, keepdim=True)

    x = torch.randn(5, 2)
    loss = discriminator_loss(linear, x, x, gamma=0.2)
    torch.testing.assert_close(loss.adversarial, torch.full((5,), 2.0).log())
    torch.testing.assert_close(loss.r1, torch.full((5,), 25.0))
    torch.testing.assert_close(loss.total, loss.adversarial + 0.1 * 50.0)
    torch.testing.assert_close(generator_loss(linear, x, x), loss.adversarial)
    assert not discriminator_loss(linear, x, x, gamma=0.0).r2.any()


def test_the_losses_pull_in_opposite_directions() -> None:
    discriminator = small_discriminator((1, 8, 8))
    torch.manual_seed(0)
    fake, real = torch.randn(2, 16, 1, 8, 8)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-3)
    before = discriminator_loss(discriminator, fake, real).total.mean()
    for _ in range(20):
        optimizer.zero_grad()
        discriminator_loss(discriminator, fake, real).total.mean().backward()
        optimizer.step()
    after = discriminator_loss(discriminator, fake, real)
    assert after.total.mean() < before
    leaf = fake.clone().requires_grad_()
    loss = generator_loss(discriminator, leaf, real).mean()
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert generator_loss(discriminator, fake - 10 * gradient, real).mean() < loss


def test_every_weight_of_a_trained_discriminator_has_a_gradient() -> None:
    """At the start the residual branches are closed, so only what lies outside them and their last layers have one."""
    discriminator = small_discriminator((3, 16, 16))
    for module in discriminator.modules():
        if isinstance(module, torch.nn.Conv2d) and not module.weight.any():
            torch.nn.init.normal_(module.weight, std=0.1)
    discriminator_loss(discriminator, *torch.randn(2, 4, 3, 16, 16)).total.mean().backward()
    for name, value in discriminator.named_parameters():
        assert value.grad is not None and value.grad.isfinite().all() and value.grad.any(), name


def test_the_papers_discriminator_has_the_published_size() -> None:
    discriminator = paper_discriminator((3, 64, 64))
    assert sum(value.numel() for value in discriminator.parameters()) == 22_381_440
    assert discriminator(torch.randn(1, 3, 64, 64)).shape == (1, 1)


def test_latents_and_other_resolutions_have_stages_down_to_four_pixels() -> None:
    sizes = {}
    for side in (32, 128):
        discriminator = paper_discriminator((4, side, side))
        assert discriminator.basis.kernel_size == (4, 4)
        sizes[side] = sum(value.numel() for value in discriminator.parameters())
    assert sizes[32] < 22_381_440 < sizes[128]


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (1, 4, 4), (2, 9, 7)])
def test_the_small_discriminator_scores_small_images(shape: tuple[int, int, int]) -> None:
    discriminator = small_discriminator(shape)
    assert discriminator(torch.randn(2, *shape)).shape == (2, 1)
    assert sum(value.numel() for value in discriminator.parameters()) < 1_000_000


@pytest.mark.parametrize("shape", [(3, 48, 48), (3, 16, 16), (3, 64, 32)])
def test_the_papers_discriminator_refuses_other_sizes(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="takes square images of 32, 64, 128"):
        paper_discriminator(shape)


def test_too_many_stages_are_refused() -> None:
    with pytest.raises(ValueError, match="discriminator of 4 stages"):
        Discriminator((1, 4, 4), (8, 8, 8, 8), (1, 1, 1, 1))


def test_the_moving_average_warms_up_and_survives_a_checkpoint() -> None:
    params = nn.ParameterDict({"w": torch.zeros(2, dtype=torch.float64)})
    average, again = moving_average(params, 0.25), moving_average(params, 0.25)
    params["w"].data += 1.0
    average.update_parameters(params)
    first = 1 - 2 / 11
    torch.testing.assert_close(average.module["w"], torch.full((2,), first, dtype=torch.float64), rtol=1e-15, atol=0.0)
    again.load_state_dict(average.state_dict())
    params["w"].data += 1.0
    for both in (average, again):
        both.update_parameters(params)
        assert not both.module["w"].requires_grad
        expected = torch.full((2,), first + (2 - first) * 0.75, dtype=torch.float64)  # 3 / 12 is the decay
        torch.testing.assert_close(both.module["w"], expected, rtol=1e-15, atol=0.0)
    with torch.inference_mode():  # as within a validation
        restart(average, params)
    assert torch.equal(average.module["w"], params["w"])
    params["w"].data += 1.0
    average.update_parameters(params)
    torch.testing.assert_close(average.module["w"], torch.full((2,), 3 - 2 / 11, dtype=torch.float64))
    with pytest.raises(ValueError, match="decay"):
        moving_average(params, 1.5)
