"""Training noise that moves inside a ball."""

from __future__ import annotations

import pytest
import torch

from solverdistill.fits.gradient.relaxed_noise import accept, move, prior_bound, project, shift_rate


def test_projection_keeps_what_is_inside_and_shortens_the_rest() -> None:
    origin = torch.randn(3, 2, 4, dtype=torch.float64)
    direction = torch.randn_like(origin)
    direction = direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1)
    lengths = torch.tensor([0.0, 0.5, 3.0], dtype=torch.float64)
    moved = origin + direction * lengths.view(-1, 1, 1)
    projected = project(moved, origin, 1.0)
    assert torch.equal(projected[:2], moved[:2])
    torch.testing.assert_close(projected[2], origin[2] + direction[2])
    torch.testing.assert_close(project(projected, origin, 1.0), projected)
    assert torch.equal(project(moved, origin, 0.0)[0], origin[0])


def test_only_samples_that_became_better_move() -> None:
    old, new = torch.zeros(3, 2), torch.ones(3, 2)
    kept = accept(new, old, torch.tensor([0.5, 1.0, 2.0]), torch.tensor([1.0, 1.0, 1.0]))
    assert kept.tolist() == [[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]


def test_moves_follow_the_gradient_and_are_detached() -> None:
    noise = torch.randn(3, 2, requires_grad=True)
    moved = move(noise, torch.ones(3, 2), 0.5)
    assert not moved.requires_grad
    torch.testing.assert_close(moved, noise.detach() - 0.5)


def test_published_numbers() -> None:
    assert prior_bound(3072, 10) == pytest.approx(0.03072)
    assert shift_rate(4) == 3.0


def test_the_soft_loss_of_a_student_that_is_only_off_by_a_shift_vanishes() -> None:
    """student(z) = z + 0.05, teacher(z) = z: a ball of radius 0.2 around z contains the noise that hits."""
    origin = torch.randn(16, 8, dtype=torch.float64)
    moved = origin.clone()
    for _ in range(50):
        noise = moved.clone().requires_grad_()
        loss = (noise + 0.05 - origin).square().sum(1)
        loss.sum().backward()
        assert noise.grad is not None
        candidate = project(move(noise, noise.grad, 0.2), origin, 0.2)
        moved = accept(candidate, moved, (candidate + 0.05 - origin).square().sum(1), loss)
    torch.testing.assert_close(moved, origin - 0.05)


@pytest.mark.parametrize(("dimension", "nfe"), [(0, 4), (6, 0)])
def test_impossible_balls_are_refused(dimension: int, nfe: int) -> None:
    with pytest.raises(ValueError, match="a ball needs"):
        prior_bound(dimension, nfe)
