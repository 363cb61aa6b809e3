"""What could make a run faster, told from where its time goes: plain sentences that name options, none when all is well."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from limner.config import Config

Hint = Literal["encodes anew", "waits for data", "launch-bound", "launched one by one", "room without checkpointing"]

SENTENCES: dict[Hint, str] = {
    "encodes anew": "Much of the time goes into encoding pictures or captions anew in each step; memory.cache_latents and "
    "memory.cache_text keep the results.",
    "waits for data": "The device waits for pictures to be read. A faster disk for memory.cache_path would help, or ending "
    "what else reads from it.",
    "launch-bound": "The device waits for the computer to tell it what to do (launch-bound). A larger train.batch_size costs "
    "little more time.",
    "launched one by one": "The device waits for the computer to tell it what to do (launch-bound). Set speed.cuda_graph or "
    "speed.compile, or a larger train.batch_size, which costs little more time.",
    "room without checkpointing": "memory.checkpointing costs about a third of the time, and there is room without it.",
}

_MUCH_WAITING = 0.1
_MUCH_HOST = 0.3
_ROOM = 0.4
"""Without checkpointing activations take several times the memory; weights stay as they are."""


@dataclass(frozen=True)
class Shares:
    """What parts of the time the run was held up by: 0 to 1, together 1."""

    data_wait: float
    host: float
    device: float


@dataclass(frozen=True)
class Situation:
    """What a run does already."""

    launches: bool
    """Its device is told what to do and does it meanwhile, as CUDA's are."""
    caches: bool
    """Latents and captions are encoded once, where that is possible."""
    compiles: bool
    checkpoints: bool


def situation(config: Config, device: str) -> Situation:
    """`device`: cpu | cuda | mps."""
    memory = config.memory
    caches = memory.cache_latents and (memory.cache_text or config.trains_text)
    compiles = config.speed.compile != "off" or config.speed.cuda_graph
    return Situation(device == "cuda", caches, compiles, memory.checkpointing)


def hint(shares: Shares, situation: Situation, memory_used: float) -> Hint | None:
    """The one thing that would help most. `memory_used`: the most that was used of the device's memory, 0 to 1."""
    if shares.data_wait > _MUCH_WAITING:
        return "waits for data" if situation.caches else "encodes anew"
    if situation.launches and shares.host > _MUCH_HOST:
        return "launch-bound" if situation.compiles else "launched one by one"
    return "room without checkpointing" if situation.checkpoints and memory_used < _ROOM else None
