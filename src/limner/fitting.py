"""The ways to keep a run in memory, from the fastest to the smallest, and the events that tell which one it takes.

Only options that the user left as they are take part. What is computed again, or in pieces, gives the same numbers within
rounding; a base stored in few bits does not, and so is chosen before the first step alone.
"""

from __future__ import annotations

from typing import Any

from limner.config import Config, files
from limner.config.fields import walk
from limner.runs import Run

Options = dict[str, Any]
"""Dotted name -> value, laid over the configuration that was asked for."""

_AGAIN = 1 / 3  # of a step's arithmetic is a forward pass
_PIECE = 0.05  # what each halving of a batch costs: weights are read, and kernels ordered, once more
_QUANTIZED = {"fp8": 1.4, "nf4": 1.8}
_SWAPPED_SHARES = (0.25, 0.5, 0.75)


def ladder(asked: Config, device: str, *, exact: bool, num_blocks: int = 0) -> list[Options]:
    """Every way, the fastest first; the first is what was asked for. `exact`: only those that give the same numbers.

    `num_blocks`: how many of the denoiser's blocks could be swapped.
    """
    ways: list[tuple[float, Options]] = []
    for cost, narrow in _narrowed(asked, exact):
        for pieces, split in _split(asked):
            ways += [(cost * pieces * again, {**narrow, **split, **kept}) for again, kept in _computed_again(asked)]
    if device == "cuda" and num_blocks and not asked.adapter.trains_base and _is_free(asked, "memory.swap_blocks"):
        smallest = {**_split(asked)[-1][1], **_computed_again(asked)[-1][1]}
        if asked.memory.checkpointing or "memory.checkpointing" in smallest:
            for share in _SWAPPED_SHARES:
                ways.append((2 + share, {**smallest, "memory.swap_blocks": round(num_blocks * share)}))
    ways.sort(key=lambda way: way[0])
    return [options for _, options in ways]


def _split(asked: Config) -> list[tuple[float, Options]]:
    """(what it costs, options): the batch at once, in halves, in quarters ..."""
    out, size, cost = [(1.0, Options())], asked.train.batch_size, 1.0
    while size > 1 and _is_free(asked, "memory.micro_batch"):
        size, cost = -(-size // 2), cost + _PIECE
        out.append((cost, {"memory.micro_batch": size}))
    return out


def _computed_again(asked: Config) -> list[tuple[float, Options]]:
    if asked.memory.checkpointing or not _is_free(asked, "memory.checkpoint_every"):
        return [(1.0, {})]
    every = [(1 + _AGAIN / n, {"memory.checkpointing": True, "memory.checkpoint_every": n}) for n in (4, 2, 1)]
    return [(1.0, {}), *every]


def _narrowed(asked: Config, exact: bool) -> list[tuple[float, Options]]:
    if exact or asked.adapter.trains_base or asked.model.merge or not _is_free(asked, "memory.quantize"):
        return [(1.0, {})]
    return [(1.0, {}), *((cost, {"memory.quantize": kind}) for kind, cost in _QUANTIZED.items())]


def _is_free(asked: Config, name: str) -> bool:
    """Whether the user left an option as it is."""
    option = next(o for o in walk() if o.path == name)
    return getattr(asked.memory, option.name) == option.default


def laid_over(asked: Config, options: Options) -> Config:
    """The configuration with a way laid over it."""
    if not options:
        return asked
    memory = asked.memory.model_copy(update={name.removeprefix("memory."): value for name, value in options.items()})
    return asked.model_copy(update={"memory": memory})


def recorded(run: Run) -> Options | None:
    """The way that a run took last; None if none was chosen."""
    found = [e["options"] for e in run.history("fit") if isinstance(e.get("options"), dict)]
    known = {option.path for option in walk() if option.section == "memory"}
    return {k: v for k, v in found[-1].items() if k in known} if found else None


def smaller(asked: Config, now: Options, device: str, num_blocks: int) -> Options | None:
    """The next way below `now` that gives the same numbers; None if there is none."""
    narrow = {k: v for k, v in now.items() if k == "memory.quantize"}
    ways = [{**narrow, **way} for way in ladder(asked, device, exact=True, num_blocks=num_blocks)]
    place = ways.index(now) if now in ways else 0
    return next((way for way in ways[place + 1 :] if _holds_less(way, now, asked)), None)


def _holds_less(way: Options, now: Options, asked: Config) -> bool:
    """Whether a way keeps no more than `now` in any respect: one that is slower need not be smaller."""

    def measure(options: Options) -> tuple[float, float, float]:
        memory = laid_over(asked, options).memory
        return (
            min(memory.micro_batch or asked.train.batch_size, asked.train.batch_size),
            1 - 1 / memory.checkpoint_every if memory.checkpointing else 1.0,
            -memory.swap_blocks,
        )

    return way != now and all(a <= b for a, b in zip(measure(way), measure(now), strict=True))


def words(options: Options) -> str:
    """A way as it would be written into a configuration."""
    return ", ".join(f"{name} = {files.shown(value)}" for name, value in options.items()) or "as configured"
