"""Learning-rate schedules as pure functions of the step: nothing to save, nothing to resume.

They are those of transformers and diffusers, but for four things: `schedule_floor` is a share for every one that falls to
zero (there an absolute rate, or none); the warm-up always rises from zero; piecewise and adafactor have a warm-up, too;
and after `total` steps every schedule stays where it ended.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from limner.config import Optimizer

_ADAFACTOR_PLATEAU = 1e-2


def schedule_factor(section: Optimizer, step: int, total: int) -> float:
    """The share of the learning rate at step `step` (from 0) of `total`.

    Warm-up rises linearly from 0 and reaches the schedule's first value at step `num_warmup_steps`.
    """
    warmup = section.num_warmup_steps(total)
    ramp = step / warmup if step < warmup else 1.0
    shape = _BY_STEP.get(section.schedule)
    if shape is not None:
        return ramp * shape(section, step, warmup)
    if step < warmup:
        return ramp
    if section.schedule == "warmup_stable_decay":
        decay = min(total - warmup, max(1, round(section.decay_share * total)))
        progress = max(0.0, step - (total - decay)) / max(1, decay)
    else:
        progress = (step - warmup) / max(1, total - warmup)
    falling = _BY_PROGRESS[section.schedule](section, min(1.0, progress))
    return section.schedule_floor + (1 - section.schedule_floor) * falling


def _cosine(progress: float) -> float:
    """arXiv:1608.03983, eq. 5, from 1 to 0."""
    return (1 + math.cos(math.pi * progress)) / 2


def _restarts(section: Optimizer, progress: float) -> float:
    return _cosine(section.schedule_cycles * progress % 1) if progress < 1 else 0.0


def _inverse_sqrt(section: Optimizer, step: int, warmup: int) -> float:
    """1 until the end of the warm-up, from there as if the steps before it had been `timescale`."""
    timescale = section.schedule_timescale or warmup or 10_000
    return 1 / math.sqrt(max(0, step - warmup) / timescale + 1)


def _piecewise(section: Optimizer, step: int, warmup: int) -> float:  # noqa: ARG001
    return next(factor for end, factor in section.parsed_pieces() if end is None or step < end)


def _adafactor(section: Optimizer, step: int, warmup: int) -> float:  # noqa: ARG001
    """arXiv:1804.04235, algorithm 5: rho = min(1e-2, 1 / sqrt(t)), t from 1; here in units of that 1e-2."""
    return min(1.0, 1 / (_ADAFACTOR_PLATEAU * math.sqrt(step + 1)))


_BY_STEP: dict[str, Callable[[Optimizer, int, int], float]] = {
    "constant": lambda section, step, warmup: 1.0,  # noqa: ARG005
    "inverse_sqrt": _inverse_sqrt,
    "piecewise": _piecewise,
    "adafactor": _adafactor,
}
_BY_PROGRESS: dict[str, Callable[[Optimizer, float], float]] = {
    "linear": lambda section, progress: 1 - progress,  # noqa: ARG005
    "cosine": lambda section, progress: _cosine(progress),  # noqa: ARG005
    "cosine_restarts": _restarts,
    "polynomial": lambda section, progress: (1 - progress) ** section.schedule_power,
    "warmup_stable_decay": lambda section, progress: _cosine(progress),  # noqa: ARG005
}
