"""What a network expects and what its output means: the words in which a user states it."""

from __future__ import annotations

from dataclasses import dataclass

from solverdistill.noise.paths import Discrete, Path
from solverdistill.support.type_checks import check_fields
from solverdistill.teachers.own.native_levels import PREDICTIONS

TIMES = ("schedule", "reversed", "index", "sigma", "log_sigma", "half_log_snr")
ARGUMENTS = ("x", "time", "label")


@dataclass(frozen=True)
class Convention:
    """What a network expects and what its output means.

    Args:
        prediction: "eps", "v", "flow" or "denoised".
        time: The number that the network is told: "schedule", the time of its noise schedule (sigma on edm, the share
            of noise on flow, s in [0, 1] else); "reversed", one minus that, a flow's velocity then being the derivative
            in this time, data minus noise; "index", 0 .. M - 1 of a discrete schedule; "sigma", "log_sigma" and
            "half_log_snr", of the scale-free sigma / alpha.
        time_scale: Factor on this number.
        time_offset: Added after the factor.
        discrete_times: Give the nearest integer index, as int64.
        call: The network's arguments in their order, from x, time and label; "name=time" passes by keyword.
        condition: How a class is given: "index", or "onehot" with a row of zeros for no class.
        null_label: Index that means no class; None for a network that always has one.
        time_shape: Shape of one sample's time: () for times of shape (batch,), (1,) for (batch, 1), and so on.
    """

    prediction: str
    time: str
    time_scale: float = 1.0
    time_offset: float = 0.0
    discrete_times: bool = False
    call: tuple[str, ...] = ("x", "time")
    condition: str = "index"
    null_label: int | None = None
    time_shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        for name, known in (("prediction", PREDICTIONS), ("time", TIMES), ("condition", ("index", "onehot"))):
            if getattr(self, name) not in known:
                raise ValueError(f"model.{name} {getattr(self, name)!r} is unknown; known: {', '.join(known)}")
        if any(size != 1 for size in self.time_shape):
            raise ValueError(f"model.time_shape {list(self.time_shape)} must list ones, as [1] for times (batch, 1)")
        for argument in self.call:
            if argument.split("=")[-1] not in ARGUMENTS or argument.count("=") > 1:
                raise ValueError(f"model.call names {argument!r}; it may hold x, time, label and keyword=time")
        integer = self.time == "index" and self.time_scale == 1 and float(self.time_offset).is_integer()
        if self.discrete_times and not integer:
            raise ValueError("model.discrete_times needs time=index, time_scale=1 and a whole time_offset")

    def check(self, path: Path, noise_range: tuple[float, float]) -> None:
        """Refuse what cannot go together with a noise schedule."""
        if self.time == "index" and not isinstance(path, Discrete):
            raise ValueError(f"model.time=index needs a discrete noise_schedule, not {path.name}; use time=schedule")
        if self.prediction == "flow" and isinstance(path, Discrete):
            raise ValueError("model.prediction=flow needs a continuous noise_schedule: flow, vp or cosine")
        if self.prediction == "eps" and float(path.alpha(noise_range[0])) <= 0:
            raise ValueError(
                f"a network that predicts eps says nothing at alpha = 0, where noise_range {list(noise_range)} begins; "
                "let it begin at a smaller noise level"
            )
