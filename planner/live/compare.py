"""What the model said beside what the kernel did, over time and at rest."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Comparison", "TimeTo", "compare", "time_to", "to_json"]

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One counter over `n_samples` times.

    `last_error` is model minus measured at the last time, as a share of the measured value there.
    `error` is the mean absolute difference over all times and `bias` the mean difference, both as
    shares of the mean measured value. Each is None where its measured value is zero and the
    model's is not.
    """

    counter: str
    n_samples: int
    measured_last: int
    model_last: int
    last_error: float | None
    error: float | None
    bias: float | None


@dataclass(frozen=True, slots=True)
class TimeTo:
    """When a counter first reached a share of its own last value, ns since ksmd's start.

    `error` is model minus measured as a share of the measured time; None where either has none.
    """

    counter: str
    share: float
    measured_ns: int | None
    model_ns: int | None
    error: float | None


def _share(difference: float, scale: float) -> float | None:
    if scale:
        return difference / scale
    return None if difference else 0.0


def compare(counter: str, measured: I64, model: I64) -> Comparison:
    """Compare two series of shape (n,), n >= 1, taken at the same times."""
    difference = model.astype(np.float64) - measured
    scale = float(np.abs(measured).mean())
    return Comparison(
        counter, len(measured), int(measured[-1]), int(model[-1]),
        _share(float(difference[-1]), abs(float(measured[-1]))),
        _share(float(np.abs(difference).mean()), scale), _share(float(difference.mean()), scale))


def time_to(counter: str, share: float, time_ns: I64, measured: I64, model: I64) -> TimeTo:
    """When each series first reached `share` of its own last value, interpolated."""
    found = [_reached(time_ns, values, share) for values in (measured, model)]
    error = None
    if found[0] and found[1] is not None:
        error = (found[1] - found[0]) / found[0]
    return TimeTo(counter, share, found[0], found[1], error)


def _reached(time_ns: I64, values: I64, share: float) -> int | None:
    wanted = share * float(values[-1])
    if wanted <= 0:
        return None
    at = int(np.argmax(values >= wanted))
    if at == 0:
        return int(time_ns[0])
    low, high = float(values[at - 1]), float(values[at])
    part = (wanted - low) / (high - low)
    return int(time_ns[at - 1] + part * (time_ns[at] - time_ns[at - 1]))


def to_json(found: Comparison | TimeTo) -> dict[str, Any]:
    """Its fields."""
    return asdict(found)
