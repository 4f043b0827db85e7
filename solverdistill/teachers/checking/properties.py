"""What the fits and the theory need of a teacher, whatever its settings: checks for `checking.check_teacher`."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from solverdistill.noise.levels import Level
from solverdistill.teachers.checking.bench import NOTE, RIGHT, WRONG, Bench, Finding, rms

SYMMETRIC = 0.7  # trained networks reach 0.01 to 0.45, arbitrary ones 1


def check_properties(bench: Bench) -> list[Finding]:
    """Symmetry, round trip, behaviour in a batch, derivatives."""
    first = [check_symmetry(bench), check_round_trip(bench), *check_behaviour(bench)]
    return [*first, *check_gradients(bench)]


def check_symmetry(bench: Bench, pairs: int = 4) -> Finding:
    """Asymmetry of the Jacobian, |J - J^T| / |J + J^T|, estimated with random pairs u, v of normal vectors."""
    difference, total = [], []
    for s in bench.levels()[2:7:2]:
        x = bench.noised(s).requires_grad_()
        with torch.enable_grad():
            output = bench.denoised(x, bench.level(s))
        for _ in range(pairs):
            u, v = bench.noise(), bench.noise()
            first, second = (torch.autograd.grad(output, x, w, retain_graph=True)[0] for w in (u, v))
            one, other = ((a * b).flatten(1).sum(1) for a, b in ((first, v), (second, u)))
            difference.append(one - other)
            total.append(one + other)
    value = rms(torch.cat(difference)) / max(rms(torch.cat(total)), 1e-30)
    measured = f"asymmetry {value:.2g} (0 symmetric, 1 arbitrary)"
    if value < SYMMETRIC:
        return Finding("symmetry", RIGHT, measured, "The Jacobian is that of a gradient field, as a denoiser's is.")
    text = "The Jacobian is not symmetric: weights not trained for denoising, or an input that is permuted."
    return Finding("symmetry", WRONG, measured, text)


def check_round_trip(bench: Bench) -> Finding:
    """Noise to sample to noise along the ODE, 64 steps of Heun's method each way."""
    noise = bench.noise()
    with torch.no_grad():
        _, back = bench.integrate(noise, back=True)
    assert back is not None
    value = rms(back - noise)
    measured = f"{value:.2g} of the noise's deviation"
    if value < 0.05:
        return Finding("round trip", RIGHT, measured, "The ODE leads from noise to samples and back.")
    if value < 0.3:
        text = "The ODE is rough (integer or high-frequency times do that); fits may need more reference steps."
        return Finding("round trip", NOTE, measured, text)
    return Finding(
        "round trip", WRONG, measured, "The ODE does not lead back to the noise: the denoised estimate is not smooth."
    )


def check_gradients(bench: Bench) -> list[Finding]:
    """Gradients in the state and, against a finite difference, in the level; then forward mode."""
    s = bench.levels()[4]
    x, level = bench.noised(s).requires_grad_(), bench.level(s)
    log_sigma = torch.log(level.sigma).detach().requires_grad_()
    weight = bench.noise()

    def value(y: Tensor, shift: Any) -> Tensor:
        sigma = torch.exp(shift).to(y).expand(len(y))
        alpha = sigma.detach() * 0 + float(level.alpha)
        cond = () if bench.cond is None else (bench.cond,)
        return bench.teacher(y, alpha, sigma, *cond)

    with torch.enable_grad():
        total = (value(x, log_sigma) * weight).sum()
        grads: tuple[Any, ...] = (None, None)
        if total.requires_grad:
            grads = torch.autograd.grad(total, (x, log_sigma), allow_unused=True)
        of_x, of_level = grads[0], grads[1]
    findings = []
    for name, grad in (("gradient in x", of_x), ("gradient in level", of_level)):
        good = grad is not None and bool(torch.isfinite(grad).all()) and bool((grad != 0).any())
        text = "It arrives." if good else "None arrives: does the network detach, round or run without gradients?"
        findings.append(Finding(name, RIGHT if good else WRONG, "finite" if good else "none or not finite", text))
    if of_level is not None:
        with torch.no_grad():
            up, down = (float((value(x, log_sigma + h).double() * weight).sum()) for h in (0.02, -0.02))
        found, expected = float(of_level), (up - down) / 0.04
        if abs(found - expected) > 0.2 * abs(expected) + 1e-3 * float(total.detach().abs()):
            text = "Not the slope that is seen between levels: the network's own time is rounded or detached, or rough."
            findings[-1] = Finding("gradient in level", NOTE, f"{found:.3g}, seen {expected:.3g}", text)
    return [*findings, _check_forward_mode(value, x.detach(), log_sigma.detach(), of_x, weight)]


def _check_forward_mode(value: Any, x: Tensor, log_sigma: Tensor, grad: Tensor | None, weight: Tensor) -> Finding:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tangent = torch.func.jvp(lambda y: value(y, log_sigma), (x,), (weight,))[1]
    except Exception as error:  # whatever an operation without a forward derivative raises
        reason = " ".join(str(error).split())[:80]
        return Finding("forward mode", NOTE, reason, "Not available; fit=gauss_newton then takes slower derivatives.")
    expected = 0.0 if grad is None else float((grad * weight).sum())
    close = abs(float((tangent * weight).sum()) - expected) <= 1e-2 * abs(expected) + 1e-4
    text = (
        "Available, and equal to reverse mode."
        if close
        else "It disagrees with reverse mode; fit=gradient does without it."
    )
    return Finding("forward mode", RIGHT if close else NOTE, "ran", text)


def check_behaviour(bench: Bench) -> list[Finding]:
    """Determinism, independence of samples in a batch, and freedom of scale."""
    s = bench.levels()[4]
    x, level = bench.noised(s), bench.level(s)
    with torch.no_grad():
        one, again = bench.denoised(x, level), bench.denoised(x, level)
        alone = bench.denoised(x[:1], level, cond=bench.first())
        scaled = bench.denoised(3 * x, Level(3 * level.alpha, 3 * level.sigma))
    checks = (
        ("determinism", rms(one - again), 1e-6, "The same input gives the same output.",
         "Two calls differ: is there dropout or noise in the network?"),
        ("independence", rms(one[:1] - alone), 1e-2, "A sample does not depend on the others of its batch.",
         "A sample depends on the rest of its batch: are batch statistics used?"),
        ("freedom of scale", rms(one - scaled), 1e-2, "Only the ratio of signal and noise matters.",
         "Scaling the state with its level changes the estimate: the teacher does not normalise its input."),
    )  # fmt: skip
    size = max(rms(one), 1e-30)
    return [
        Finding(
            name,
            RIGHT if value <= limit * size else WRONG,
            f"{value / size:.1g} relative",
            good if value <= limit * size else bad,
        )
        for name, value, limit, good, bad in checks
    ]
