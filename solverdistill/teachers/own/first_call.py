"""One call of a network before anything long begins: mistakes in its settings become a sentence instead of a trace.

The states are noise of the network's own schedule; every call sees other samples at another level, always the same
ones, so that what a network answers also tells one network from another.
"""

from __future__ import annotations

import hashlib
import inspect
import warnings
from typing import Any

import torch
from torch import Tensor

from solverdistill.teachers.own.teacher import OwnTeacher

SHARES = (0.5, 0.0, 0.3, 0.8)  # of the way from the first noise level to the last, by their logarithms
FUNCTION_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
COLUMNS = "takes times of shape (batch, 1): wrap a function that calls it with time[:, None]"


def check_first_call(teacher: OwnTeacher) -> None:
    """Call the network twice on a few samples.

    Raises:
        ValueError: it takes other arguments, fails, or returns another shape, numbers that are not finite or other
            numbers at the second call.
    Warns:
        UserWarning: no gradient reaches its input.
    """
    with torch.enable_grad():
        x, time, cond = _question(teacher, SHARES[0])
        x.requires_grad_()
        output = _answer(teacher, x, time, cond)
        again = _answer(teacher, x.detach(), time, cond)
    if not bool(output.isfinite().all()):
        raise ValueError(f"the network of {teacher.name} returns numbers that are not finite for noise")
    size = float(output.detach().double().abs().max())
    if float((output - again).detach().double().abs().max()) > 0.01 * size:
        raise ValueError(
            f"the network of {teacher.name} returns other numbers when called again: call eval() of the modules that "
            "it uses, and draw no random numbers in it"
        )
    if not output.requires_grad:
        warnings.warn(
            f"no gradient reaches the input of {teacher.name}: torch.no_grad() or detach() inside of the network "
            "leaves nothing to fits that differentiate it",
            stacklevel=4,
        )


def settle_function(teacher: OwnTeacher) -> None:
    """Find where and in which dtype a function works, which has no weights to tell it; states may have any dtype.

    Raises:
        ValueError: it works nowhere.
    """
    mistakes = []
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        teacher.to(device)
        for dtype in FUNCTION_DTYPES:
            mistake = _mistake(teacher, dtype)
            if mistake is None:
                both = dtype == torch.float32 and _mistake(teacher, torch.float64) is None
                teacher.dtype = None if both else dtype
                return
            mistakes.append(mistake)
    raise next((mistake for mistake in mistakes if "same device" not in str(mistake)), mistakes[0])


def _mistake(teacher: OwnTeacher, dtype: torch.dtype) -> ValueError | None:
    teacher.dtype = dtype
    try:
        with torch.no_grad():
            _answer(teacher, *_question(teacher, SHARES[0]))
    except ValueError as error:
        return error
    return None


def answers(teacher: OwnTeacher) -> str:
    """SHA-256 of what the network returns for fixed questions: another one when its code or what it uses changes.

    The last digits of a network differ between devices, and the answer with them.
    """
    digest = hashlib.sha256()
    with torch.no_grad():
        for share in SHARES:
            output = _answer(teacher, *_question(teacher, share)).detach().cpu().contiguous()
            digest.update(output.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _question(teacher: OwnTeacher, share: float) -> tuple[Tensor, Tensor, Tensor | None]:
    """States, times and labels at a level, of a number of samples that no size of an output has: nothing broadcasts."""
    device, ones = teacher.levels.log_alphas.device, [1] * len(teacher.shape)
    sizes = {factor * size for size in teacher.shape for factor in (1, 2)}  # twice: a learned variance
    count = next(n for n in range(2, 100) if n not in sizes)
    start, end = teacher.noise_range
    level = start * max(end / start, 1e-3) ** share
    alpha, sigma = teacher.path.alpha_sigma(torch.full((count,), level, dtype=torch.float64))
    generator = torch.Generator().manual_seed(round(100 * share))
    noise = torch.randn(count, *teacher.shape, generator=generator, dtype=torch.float64)
    x = noise * (torch.hypot(alpha, sigma) / teacher.levels.norm(alpha, sigma)).view(-1, *ones)
    labels = torch.randint(teacher.num_classes, (count,), generator=generator) if teacher.num_classes else None
    time = teacher.times(alpha.to(device), sigma.to(device))
    return x.to(device, teacher.dtype or torch.float64), time, None if labels is None else labels.to(device)


def _answer(teacher: OwnTeacher, x: Tensor, time: Tensor, cond: Tensor | None) -> Tensor:
    """What the network returns, whatever switches it runs with."""
    try:
        output = _call(teacher, x, time, cond)
    except Exception as error:
        raise ValueError(f"the network of {teacher.name} {_explain(teacher, error, x, time, cond)}") from error
    try:
        return teacher.read(output, x)
    except ValueError:
        if _takes_columns(teacher, x, time, cond):
            raise ValueError(f"the network of {teacher.name} {COLUMNS}") from None
        raise


def _call(teacher: OwnTeacher, x: Tensor, time: Tensor, cond: Tensor | None) -> Any:
    positional, keyword = teacher.arguments(x, time, cond)
    return teacher.network.network(*positional, **keyword)


def _takes_columns(teacher: OwnTeacher, x: Tensor, time: Tensor, cond: Tensor | None) -> bool:
    try:
        teacher.read(_call(teacher, x, time[:, None], cond), x)
    except Exception:
        return False
    return True


def _explain(teacher: OwnTeacher, error: Exception, x: Tensor, time: Tensor, cond: Tensor | None) -> str:
    """What is wrong with the call that gave an error."""
    network, call = teacher.network.network, teacher.convention.call
    positional, keyword = teacher.arguments(x, time, cond)
    try:
        inspect.signature(getattr(network, "function", network.forward)).bind(*positional, **keyword)
    except TypeError as wrong:
        hint = "say in call= what it takes, and in num_classes= how many labels it knows"
        return f"cannot be called with ({', '.join(call)}): {wrong}; {hint}"
    except ValueError:  # a function of C has no signature
        pass
    if _takes_columns(teacher, x, time, cond):
        return COLUMNS
    given = [f"{tuple(value.shape)} {value.dtype}" for value in (*positional, *keyword.values())]
    return f"fails on ({', '.join(call)}) = ({', '.join(given)}): {' '.join(str(error).split())}"
