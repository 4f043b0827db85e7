"""One call of a network before anything long begins: mistakes in its settings become a sentence instead of a trace.

The states are noise of the network's own schedule; every call sees other samples at another level, always the same
ones, so that what a network answers also tells one network from another.
"""

from __future__ import annotations

import hashlib
import inspect
import warnings
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from solverdistill.teachers.own.teacher import OwnTeacher

SHARES = (0.5, 0.0, 0.3, 0.8)  # of the way from the first noise level to the last, by their logarithms
FUNCTION_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
# What an operation says that exists on an accelerator alone.
ELSEWHERE = ("not implemented for", "cuda", "triton", "flash")


def begin(teacher: OwnTeacher) -> None:
    """Find how the network runs and call it, before anything long begins; see `check_first_call`.

    A network whose operations exist on an accelerator alone is left to its first call there.
    """
    tensor = next(chain(teacher.network.parameters(), teacher.network.buffers()), None)
    try:
        if tensor is None:
            settle_function(teacher)
        else:
            teacher.levels.to(tensor.device)
        check_first_call(teacher)
    except ValueError as error:
        on_cpu = tensor is not None and tensor.device.type == "cpu"
        if not on_cpu or not any(word in str(error.__cause__).lower() for word in ELSEWHERE):
            raise


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
        name = next((name for name, other in teacher.variants().items() if "time" in name and _finite(other)), None)
        way_out = f"; with {name} they are" if name else ""
        raise ValueError(f"the network of {teacher.name} returns numbers that are not finite for noise{way_out}")
    size = float(output.detach().double().abs().max())
    if float((output - again).detach().double().abs().max()) > 0.01 * size:
        raise ValueError(
            f"the network of {teacher.name} returns other numbers when called again: call eval() of the modules that "
            "it uses, and draw no random numbers in it"
        )
    if not output.requires_grad:
        warnings.warn(
            f"no gradient reaches the input of {teacher.name}: take torch.no_grad(), inference_mode() or detach() out "
            "of it, or take fits that do not differentiate it (fit=race)",
            stacklevel=5,
        )


def _finite(teacher: OwnTeacher) -> bool:
    try:
        with torch.no_grad():
            return all(bool(_answer(teacher, *_question(teacher, share)).isfinite().all()) for share in SHARES)
    except ValueError:
        return False


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
    if labels is not None and teacher.convention.null_label is not None and share == SHARES[-1]:
        labels[0] = -1  # guidance asks without a class, too
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
        shape = _other_times(teacher, x, time, cond)
        if shape:
            raise ValueError(f"the network of {teacher.name} {_columns(shape)}") from None
        raise


def _call(teacher: OwnTeacher, x: Tensor, time: Tensor, cond: Tensor | None) -> Any:
    positional, keyword = teacher.arguments(x, time, cond)
    return teacher.network.network(*positional, **keyword)


def _other_times(teacher: OwnTeacher, x: Tensor, time: Tensor, cond: Tensor | None) -> tuple[int, ...]:
    """The shape of a sample's time with which the network works; () where none does."""
    own = teacher.convention
    try:
        for shape in ((), (1,), (1,) * len(teacher.shape)):
            if shape == own.time_shape:
                continue
            teacher.convention = replace(own, time_shape=shape)
            try:
                teacher.read(_call(teacher, x, time, cond), x)
            except Exception:
                continue
            return shape
    finally:
        teacher.convention = own
    return ()


def _columns(shape: tuple[int, ...]) -> str:
    sizes = ", ".join(["batch", *map(str, shape)])
    return f"takes times of shape ({sizes}): say time_shape=[{','.join(map(str, shape))}]"


def _explain(teacher: OwnTeacher, error: Exception, x: Tensor, time: Tensor, cond: Tensor | None) -> str:
    """What is wrong with the call that gave an error."""
    network, call = teacher.network.network, teacher.convention.call
    positional, keyword = teacher.arguments(x, time, cond)
    more = ""
    try:
        signature = inspect.signature(getattr(network, "function", network.forward))
        bound = signature.bind(*positional, **keyword).arguments
        names = [name for name, what in signature.parameters.items() if name not in bound and what.kind not in VARIABLE]
        more = f"; it takes {', '.join(names)} too, which call= can name and num_classes= make" if names else ""
    except TypeError as wrong:
        hint = "say in call= what it takes, and in num_classes= how many labels it knows"
        return f"cannot be called with ({', '.join(call)}): {wrong}; {hint}"
    except ValueError:  # a function of C has no signature
        pass
    shape = _other_times(teacher, x, time, cond)
    if shape:
        return _columns(shape)
    given = [f"{tuple(value.shape)} {value.dtype}" for value in (*positional, *keyword.values())]
    return f"fails on ({', '.join(call)}) = ({', '.join(given)}): {' '.join(str(error).split())}{more}"
