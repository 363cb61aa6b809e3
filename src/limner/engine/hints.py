"""What could make a run faster, told from where its time goes. Plain sentences that name options; "" when all is well."""

from __future__ import annotations

from dataclasses import dataclass

from limner.config import Config

WAITS_FOR_ENCODING = (
    "Much of the time goes into encoding pictures or captions anew in each step: memory.cache_latents and memory.cache_text "
    "keep the results."
)
WAITS_FOR_DATA = (
    "The device waits for pictures to be read: put memory.cache_path on a faster disk, or end what else reads from it."
)
LAUNCH_BOUND = (
    "The device waits for the computer to tell it what to do (launch-bound): twice the train.batch_size costs little more time."
)
COMPILES_NOT = (
    "The device waits for the computer to tell it what to do (launch-bound): set speed.compile, or twice the train.batch_size."
)
CHECKPOINTS = "memory.checkpointing costs a third of the time, and there is room without it."
HINTS = (WAITS_FOR_ENCODING, WAITS_FOR_DATA, LAUNCH_BOUND, COMPILES_NOT, CHECKPOINTS)

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
    return Situation(device == "cuda", caches, compiles=False, checkpoints=memory.checkpointing)


def hint(shares: Shares, situation: Situation, memory_used: float) -> str:
    """The one thing that would help most. `memory_used`: the most that was used of the device's memory, 0 to 1."""
    if shares.data_wait > _MUCH_WAITING:
        return WAITS_FOR_DATA if situation.caches else WAITS_FOR_ENCODING
    if situation.launches and shares.host > _MUCH_HOST:
        return LAUNCH_BOUND if situation.compiles else COMPILES_NOT
    return CHECKPOINTS if situation.checkpoints and memory_used < _ROOM else ""
